//! A fake control plane over real mutual TLS, with faults that tests switch on.

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use merlon_api::{
    JoinToken,
    discovery::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse,
        aggregated_discovery_service_server::{
            AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
        },
    },
    identity::{
        Evidence, IssueRequest, IssueResponse,
        identity_server::{Identity, IdentityServer},
    },
    inspection::{
        InspectReply, InspectRequest,
        inspection_server::{Inspection, InspectionServer},
    },
    seal_resource,
};
use merlon_certs::H2;
use merlon_config::snapshot::{ResourceKey, ResourceKind};
use rcgen::CertificateSigningRequestParams;
use tokio::{
    net::TcpListener,
    runtime::Runtime,
    sync::{mpsc, watch},
};
use tokio_rustls::TlsAcceptor;
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use super::fixtures::{Authority, CONTROL_PLANE, key, manifest};
use crate::control::assemble::Resources;

/// How the fake control plane issues the next certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Issuing {
    /// As requested, with this lifetime.
    For(Duration),
    /// As requested, by a clock that is an hour behind: it is due for renewal at once.
    DueAtOnce,
    /// For another identity than the requested one.
    OtherIdentity,
    /// By a root that is not in the bundle.
    OtherRoot,
    /// Refuses the request.
    Refuse,
}

/// Behaviour that a test sets, and the requests received.
pub(crate) struct Script {
    pub(crate) issuing: Mutex<Issuing>,
    pub(crate) evidence: Mutex<Vec<Option<String>>>,
    pub(crate) requests: Mutex<Vec<DeltaDiscoveryRequest>>,
    /// Destinations and addresses that exist, sent on request.
    pub(crate) known: Mutex<Resources>,
    /// Flips a bit in every resource sent.
    pub(crate) corrupt: Mutex<bool>,
    pub(crate) reports: Mutex<Vec<InspectReply>>,
    pub(crate) state: watch::Sender<Resources>,
}

pub(crate) struct FakeControlPlane {
    pub(crate) address: url::Url,
    pub(crate) authority: Arc<Authority>,
    pub(crate) script: Arc<Script>,
    /// A runtime of its own: dropping it closes every connection.
    runtime: Option<Runtime>,
}

impl Drop for FakeControlPlane {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl FakeControlPlane {
    pub(crate) fn start(state: Resources) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = format!("https://{}", listener.local_addr().unwrap())
            .parse()
            .unwrap();
        let authority = Arc::new(Authority::new());
        let script = Arc::new(Script {
            issuing: Mutex::new(Issuing::For(Duration::from_secs(3_600))),
            evidence: Mutex::default(),
            requests: Mutex::default(),
            known: Mutex::default(),
            corrupt: Mutex::new(false),
            reports: Mutex::default(),
            state: watch::Sender::new(state),
        });
        let tls = authority.tls(CONTROL_PLANE, Duration::from_secs(3_600));
        let acceptor =
            TlsAcceptor::from(tls.server_config_with_optional_client_cert(&[H2]).unwrap());
        let service = Service {
            authority: Arc::clone(&authority),
            script: Arc::clone(&script),
        };
        let server = async move {
            let incoming = accept(TcpListener::from_std(listener).unwrap(), acceptor);
            let server = tonic::transport::Server::builder()
                .add_service(IdentityServer::new(service.clone()))
                .add_service(AggregatedDiscoveryServiceServer::new(service.clone()))
                .add_service(InspectionServer::new(service))
                .serve_with_incoming(incoming);
            drop(server.await);
        };
        drop(runtime.spawn(server));
        Self {
            address,
            authority,
            script,
            runtime: Some(runtime),
        }
    }

    pub(crate) fn join_token(&self) -> JoinToken {
        JoinToken::new("one.test".parse().unwrap(), [7; 32], &self.authority.root)
    }
}

fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
) -> ReceiverStream<std::io::Result<tokio_rustls::server::TlsStream<tokio::net::TcpStream>>> {
    let (sender, receiver) = mpsc::channel(8);
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = sender.closed() => return,
            };
            let (Ok((stream, _)), acceptor, sender) = (accepted, acceptor.clone(), sender.clone())
            else {
                return;
            };
            tokio::spawn(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    let _ = sender.send(Ok(stream)).await;
                }
            });
        }
    });
    ReceiverStream::new(receiver)
}

#[derive(Clone)]
struct Service {
    authority: Arc<Authority>,
    script: Arc<Script>,
}

type ResponseStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Identity for Service {
    async fn issue(
        &self,
        request: Request<IssueRequest>,
    ) -> Result<Response<IssueResponse>, Status> {
        let request = request.into_inner();
        let token = match &request.evidence {
            Some(Evidence::JoinToken(token)) => Some(token.clone()),
            _ => None,
        };
        self.script.evidence.lock().unwrap().push(token);
        let csr =
            CertificateSigningRequestParams::from_der(&request.csr.as_slice().into()).unwrap();
        let own = crate::tests::fixtures::ORDERS;
        let hour = Duration::from_secs(3_600);
        let issuing = *self.script.issuing.lock().unwrap();
        let leaf = match issuing {
            Issuing::For(life) => self.authority.sign(&csr.public_key, own, life),
            Issuing::DueAtOnce => {
                let left = Duration::from_secs(600);
                self.authority
                    .sign_with_age(&csr.public_key, own, hour, left)
            }
            Issuing::OtherIdentity => self.authority.sign(
                &csr.public_key,
                "spiffe://one.test/ns/shop/sa/payments",
                hour,
            ),
            Issuing::OtherRoot => Authority::new().sign(&csr.public_key, own, hour),
            Issuing::Refuse => {
                return Err(Status::permission_denied("the join token was used before"));
            }
        };
        Ok(Response::new(IssueResponse {
            chain: vec![leaf.to_vec()],
            trust_bundle: serde_json::to_string(&self.authority.bundle()).unwrap(),
            retry_after_seconds: 0,
        }))
    }
}

#[tonic::async_trait]
impl Inspection for Service {
    type ServeStream = ResponseStream<InspectRequest>;

    async fn serve(
        &self,
        request: Request<Streaming<InspectReply>>,
    ) -> Result<Response<Self::ServeStream>, Status> {
        let (mut replies, script) = (request.into_inner(), Arc::clone(&self.script));
        tokio::spawn(async move {
            while let Some(Ok(reply)) = replies.next().await {
                script.reports.lock().unwrap().push(reply);
            }
        });
        Ok(Response::new(Box::pin(tokio_stream::pending())))
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Service {
    type DeltaAggregatedResourcesStream = ResponseStream<DeltaDiscoveryResponse>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (sender, receiver) = mpsc::channel(16);
        let (mut requests, script) = (request.into_inner(), Arc::clone(&self.script));
        tokio::spawn(async move {
            let mut states = script.state.subscribe();
            let mut nonce = 0;
            loop {
                tokio::select! {
                    request = requests.next() => {
                        let Some(Ok(request)) = request else { return };
                        script.requests.lock().unwrap().push(request.clone());
                        for response in script.respond(&request, &mut nonce) {
                            let _ = sender.send(Ok(response)).await;
                        }
                    }
                    changed = states.changed() => {
                        if changed.is_err() { return }
                        for response in script.full_state(&mut nonce) {
                            let _ = sender.send(Ok(response)).await;
                        }
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

impl Script {
    /// The responses to a request: subscribed resources that the proxy does not have yet.
    fn respond(
        &self,
        request: &DeltaDiscoveryRequest,
        nonce: &mut u32,
    ) -> Vec<DeltaDiscoveryResponse> {
        let Some(kind) = ResourceKind::from_type_url(&request.type_url) else {
            return Vec::new();
        };
        let has = &request.initial_resource_versions;
        let missing = request.resource_names_subscribe.iter().filter(|name| {
            let version = self.version(&key(kind, name));
            version.is_none() || has.get(*name) != version.as_ref()
        });
        let names: Vec<String> = missing.cloned().collect();
        if names.is_empty() {
            return Vec::new();
        }
        let on_demand = [ResourceKind::Destination, ResourceKind::Address].contains(&kind);
        let added = on_demand && self.add_known(&names);
        let mut responses = vec![self.response(kind, &names, nonce)];
        if added {
            responses.push(self.response(
                ResourceKind::Manifest,
                &[crate::tests::fixtures::ORDERS.to_owned()],
                nonce,
            ));
        }
        responses
    }

    /// Adds requested destinations and addresses that are known to the state.
    fn add_known(&self, names: &[String]) -> bool {
        let known = self.known.lock().unwrap();
        let mut added = false;
        self.state.send_if_modified(|state| {
            for name in names {
                let kinds = [ResourceKind::Destination, ResourceKind::Address];
                for key in kinds.map(|kind| key(kind, name)) {
                    if let Some(held) = known.get(&key) {
                        added |= state.insert(key, held.clone()).is_none();
                    }
                }
            }
            false
        });
        added
    }

    fn full_state(&self, nonce: &mut u32) -> Vec<DeltaDiscoveryResponse> {
        let state = self.state.borrow().clone();
        let mut responses = Vec::new();
        for kind in ResourceKind::ALL {
            let names: Vec<String> = state
                .keys()
                .filter(|key| key.kind == kind)
                .map(|key| key.name.clone())
                .collect();
            if !names.is_empty() {
                responses.push(self.response(kind, &names, nonce));
            }
        }
        responses.push(self.response(
            ResourceKind::Manifest,
            &[crate::tests::fixtures::ORDERS.to_owned()],
            nonce,
        ));
        responses
    }

    fn version(&self, key: &ResourceKey) -> Option<String> {
        let state = self.state.borrow();
        match key.kind {
            ResourceKind::Manifest => Some(manifest(&state).0.to_string()),
            _ => state.get(key).map(|held| held.version.to_string()),
        }
    }

    fn response(
        &self,
        kind: ResourceKind,
        names: &[String],
        nonce: &mut u32,
    ) -> DeltaDiscoveryResponse {
        *nonce += 1;
        let state = self.state.borrow().clone();
        let mut response = DeltaDiscoveryResponse {
            type_url: kind.type_url().to_owned(),
            nonce: nonce.to_string(),
            ..DeltaDiscoveryResponse::default()
        };
        for name in names {
            let key = key(kind, name);
            let found = match kind {
                ResourceKind::Manifest => {
                    let (version, _, json) = manifest(&state);
                    Some(seal_resource(&key, &version, &json))
                }
                _ => state
                    .get(&key)
                    .map(|held| seal_resource(&key, &held.version, &held.json)),
            };
            match found {
                Some(mut resource) => {
                    if *self.corrupt.lock().unwrap()
                        && let Some(any) = &mut resource.resource
                    {
                        any.value[0] ^= 1;
                    }
                    response.resources.push(resource);
                }
                None => response.removed_resources.push(name.clone()),
            }
        }
        response
    }
}
