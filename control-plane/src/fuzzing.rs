//! What the fuzz targets in `fuzz/` call of the private modules. Not part of the interface.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::UserInfo;
use merlon_api::{
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
    inspection::{InspectReply, Report},
};
use merlon_compile::{Compiler, StateResource};
use merlon_config::{
    injection::InjectionSettings,
    load::load_texts,
    name::{SpiffeId, TrustDomain, WorkloadId},
    probe::HookKey,
    resource::Resource,
    snapshot::{TrustBundle, Version},
};
use merlon_inject::{Injection, inject};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    cluster::token_review,
    issuance::csr::Csr,
    push::{
        inspect,
        session::{ProxyAck, Session},
    },
    source::kubernetes::{
        gateway::{GatewayObjects, attach},
        workloads,
    },
    state::snapshot::Snapshot,
    webhook::{
        body,
        review::{AdmissionResponse, Review},
    },
};

/// The public key of a certificate request that names `proved` and nothing else.
///
/// # Errors
/// Why it is rejected.
pub fn csr(der: &[u8], proved: &SpiffeId) -> Result<Vec<u8>, String> {
    let csr = Csr::check(der, proved).map_err(|error| error.to_string())?;
    Ok(csr.public_key_info().to_vec())
}

/// Whether a text may be a service account token.
pub fn is_token(text: &str) -> bool {
    token_review::is_token(text)
}

/// The service account, the pod and its uid in the `UserInfo` of a token review.
///
/// # Errors
/// Why the token proves nothing.
pub fn bound(user: &Value) -> Result<(WorkloadId, String, String), String> {
    let user: UserInfo = object(user).ok_or("not a UserInfo")?;
    let bound = token_review::bound(&user).map_err(|error| error.to_string())?;
    Ok((bound.account, bound.name, bound.uid))
}

/// The injected object and the response of the injection webhook; no object if the pod stays as it is.
///
/// # Errors
/// Why the body is not a review.
pub fn injected(
    body: &[u8],
    settings: &InjectionSettings,
) -> Result<(Value, Option<Value>, String), String> {
    let review = Review::read(body).map_err(|error| error.to_string())?;
    let key = HookKey::new(1);
    let (answer, object) = match inject(&review.object, &review.namespace, settings, &key) {
        Ok(Injection::Unchanged(_)) => (AdmissionResponse::allowed(), None),
        Ok(Injection::Changed { object, warnings }) => {
            let answer = AdmissionResponse::changed(&review.object, &object, warnings);
            (answer, Some(object))
        }
        Err(refused) => (AdmissionResponse::refused(refused.to_string()), None),
    };
    let text = answer.to(&review);
    Ok((review.object, object, text))
}

/// The number of JSON values that a body is counted with.
pub fn body_values(json: &[u8]) -> usize {
    body::values(json)
}

/// The Workloads and Services of pods, Services and EndpointSlices.
pub fn workloads(objects: &[Value]) -> Vec<Resource> {
    workloads::convert(
        of_kind(objects, "Pod"),
        &of_kind(objects, "Service"),
        &of_kind(objects, "EndpointSlice"),
    )
}

/// The resources of Gateway API objects, and the status of each object.
pub fn gateways(namespace: &str, objects: &[Value]) -> (Vec<Resource>, Vec<Value>) {
    let attached = attach(&GatewayObjects {
        namespace: namespace.to_owned(),
        classes: of_kind(objects, "GatewayClass"),
        gateways: of_kind(objects, "Gateway"),
        routes: of_kind(objects, "HTTPRoute"),
        grants: of_kind(objects, "ReferenceGrant"),
        namespaces: of_kind(objects, "Namespace"),
        services: of_kind(objects, "Service"),
        secrets: of_kind(objects, "Secret"),
    });
    let reports = attached.reports.iter();
    let reports = reports.map(|report| report.status(None, 0, Timestamp::UNIX_EPOCH));
    (attached.resources, reports.collect())
}

fn of_kind<T: DeserializeOwned>(objects: &[Value], kind: &str) -> Vec<Arc<T>> {
    let found = objects
        .iter()
        .filter(|object| object.get("kind").and_then(Value::as_str) == Some(kind));
    found.filter_map(object).map(Arc::new).collect()
}

fn object<T: DeserializeOwned>(value: &Value) -> Option<T> {
    serde_json::from_value(value.clone()).ok()
}

/// The first message of an inspection stream.
///
/// # Errors
/// The message of the status that ends the stream.
pub fn first_report(reply: InspectReply) -> Result<Report, String> {
    inspect::first_report(reply).map_err(|status| status.message().to_owned())
}

/// Compiled states of a mesh.
#[derive(Debug, Clone)]
pub struct States(Arc<Vec<Snapshot>>);

impl States {
    /// Each state is a resource file.
    ///
    /// # Errors
    /// Problems of the states.
    pub fn new(trust_domain: &TrustDomain, states: &[&str]) -> Result<Self, String> {
        let bundle = Arc::new(StateResource::trust_bundle(&TrustBundle {
            trust_domain: trust_domain.clone(),
            roots: vec!["root".to_owned()],
        }));
        let snapshots = states.iter().zip(1..).map(|(text, number)| {
            let resources = load_texts([("mesh.yaml", *text)]);
            let resources = resources.map_err(|report| report.to_string())?;
            let mesh = Compiler::new().compile(&resources);
            Ok(Snapshot {
                mesh: mesh.map_err(|report| report.to_string())?,
                bundle: Some(Arc::clone(&bundle)),
                certificates: Arc::default(),
                secrets: Arc::default(),
                number,
            })
        });
        Ok(Self(Arc::new(snapshots.collect::<Result<_, String>>()?)))
    }
}

/// The control plane's side of one discovery stream.
#[derive(Debug)]
pub struct Stream {
    session: Session,
    states: States,
    current: usize,
}

impl Stream {
    /// A stream of the proxy with this identity.
    pub fn new(identity: SpiffeId, states: &States) -> Self {
        Self {
            session: Session::new(identity),
            states: states.clone(),
            current: 0,
        }
    }

    /// Processes a request. Returns whether it acknowledges a state, and the version of that state.
    ///
    /// # Errors
    /// The message of the status that ends the stream.
    pub fn receive(
        &mut self,
        request: &DeltaDiscoveryRequest,
    ) -> Result<Option<(bool, Option<Version>)>, String> {
        let Some(snapshot) = self.states.0.get(self.current) else {
            return Err("no state".to_owned());
        };
        let ack = self.session.receive(request, snapshot);
        let ack = ack.map_err(|status| status.message().to_owned())?;
        Ok(ack.map(|ack| match ack {
            ProxyAck::Acknowledged(version) => (true, Some(version)),
            ProxyAck::Refused(version, _) => (false, version),
        }))
    }

    /// Changes the state of the mesh.
    ///
    /// # Errors
    /// The message of the status that ends the stream.
    pub fn publish(&mut self, state: usize) -> Result<(), String> {
        self.current = state.checked_rem(self.states.0.len()).unwrap_or_default();
        let Some(snapshot) = self.states.0.get(self.current) else {
            return Err("no state".to_owned());
        };
        if self.session.node().is_none() {
            return Ok(());
        }
        let refreshed = self.session.refresh(snapshot);
        refreshed.map_err(|status| status.message().to_owned())
    }

    /// Stops waiting for the proxy to name its destinations.
    pub fn release(&mut self) {
        self.session.release();
    }

    /// The responses.
    pub fn due(&mut self) -> Vec<DeltaDiscoveryResponse> {
        self.session.due()
    }

    /// The number of names that the proxy is subscribed to.
    pub fn subscriptions(&self) -> usize {
        self.session.subscriptions().values().sum()
    }
}
