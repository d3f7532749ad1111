//! Converts a cluster's gateways, routes and certificates to Merlon's resources, with a status for each.
//!
//! Pure. A mistake does not affect other objects: only the invalid listener, route or reference is left out.

mod gateway;
mod listener;
mod route;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::api::core::v1::{Namespace, Secret, Service};
use kube::{ResourceExt as _, api::DynamicObject};
use merlon_config::resource::{GatewayListener, GatewaySpec, Resource, Spec};
use serde::de::DeserializeOwned;
use serde_json::Value;

use self::{
    gateway::{addresses, gateway},
    route::attach_route,
};
use super::{
    api,
    report::{CONTROLLER, ConditionDraft, GatewayDetails, GatewayStatus},
    route::RouteContext,
};
use crate::state::snapshot::Certificates;

/// The class in resource files. In a cluster, every class of Merlon's controller is served.
const CLASS: &str = "merlon";

/// The label of a Gateway's pods, which is also in the selector of its Services (GEP-1762).
pub(crate) const GATEWAY_LABEL: &str = "gateway.networking.k8s.io/gateway-name";

/// The objects of the cluster.
#[derive(Debug, Default)]
pub(crate) struct GatewayObjects {
    /// The namespace for gateways: the control plane's own, whose Secrets it may read.
    pub(crate) namespace: String,
    pub(crate) classes: Vec<Arc<DynamicObject>>,
    pub(crate) gateways: Vec<Arc<DynamicObject>>,
    pub(crate) routes: Vec<Arc<DynamicObject>>,
    pub(crate) grants: Vec<Arc<DynamicObject>>,
    pub(crate) namespaces: Vec<Arc<Namespace>>,
    pub(crate) services: Vec<Arc<Service>>,
    pub(crate) secrets: Vec<Arc<Secret>>,
}

/// The result.
#[derive(Debug, Default)]
pub(crate) struct Attached {
    pub(crate) resources: Vec<Resource>,
    pub(crate) certificates: Certificates,
    pub(crate) reports: Vec<GatewayStatus>,
}

/// Converts all objects.
pub(crate) fn attach(seen: &GatewayObjects) -> Attached {
    let mut all = Attached::default();
    let mut classes = BTreeSet::new();
    for object in &seen.classes {
        let ours =
            spec::<api::Class>(object).is_ok_and(|class| class.controller_name == CONTROLLER);
        if ours {
            classes.insert(object.name_any());
            all.reports
                .push(report("GatewayClass", object, GatewayDetails::Class));
        }
    }
    let mut gateways = BTreeMap::new();
    for object in &seen.gateways {
        let name = (object.namespace().unwrap_or_default(), object.name_any());
        let class = object.data.pointer("/spec/gatewayClassName");
        if class
            .and_then(Value::as_str)
            .is_some_and(|class| classes.contains(class))
        {
            gateways.insert(name, gateway(object, seen, &mut all.certificates));
        }
    }
    let grants: Vec<(String, api::Grant)> = seen
        .grants
        .iter()
        .filter_map(|object| Some((object.namespace()?, spec(object).ok()?)))
        .collect();
    let (names, services) = services(&seen.services);
    let around = RouteContext {
        grants: &grants,
        services: &services,
        names: &names,
    };
    for object in &seen.routes {
        let (report, resource) = attach_route(object, seen, &around, &mut gateways);
        all.reports.extend(report);
        all.resources.extend(resource);
    }
    for ((namespace, name), own) in gateways {
        let addresses = addresses(&namespace, &name, &seen.services);
        let served = own.listeners.iter().filter(|listener| listener.is_served());
        let served: Vec<GatewayListener> = served.filter_map(|one| one.converted.clone()).collect();
        let mut report = own.report;
        let accepted = match (own.accepted.ok, served.len(), own.listeners.len()) {
            (true, 0, _) => ConditionDraft::negative("ListenersNotValid", "no listener is valid"),
            (true, some, of) if some < of => ConditionDraft::positive(
                "ListenersNotValid",
                format!("{some} of {of} listeners are served; see the conditions of the others"),
            ),
            _ => own.accepted,
        };
        if accepted.ok
            && let (Ok(namespace), Ok(name)) = (namespace.parse(), name.parse())
        {
            all.resources.push(Resource {
                namespace,
                name,
                labels: BTreeMap::new(),
                created: None,
                origin: report.origin(),
                spec: Spec::Gateway(GatewaySpec {
                    gateway_class_name: CLASS.to_owned(),
                    service_account: None,
                    listeners: served,
                }),
            });
        }
        report.details = GatewayDetails::Gateway {
            accepted,
            listeners: own.listeners.into_iter().map(|one| one.details).collect(),
            addresses,
        };
        all.reports.push(report);
    }
    // Removes routes from Gateways that are not served.
    let served: BTreeSet<(String, String)> = all
        .resources
        .iter()
        .filter(|resource| matches!(resource.spec, Spec::Gateway(_)))
        .map(|resource| (resource.namespace.to_string(), resource.name.to_string()))
        .collect();
    all.resources.retain_mut(|resource| {
        let Spec::HttpRoute(route) = &mut resource.spec else {
            return true;
        };
        route.parent_refs.retain(|parent| {
            let namespace = parent.namespace.as_ref().map(ToString::to_string);
            served.contains(&(namespace.unwrap_or_default(), parent.name.to_string()))
        });
        !route.parent_refs.is_empty()
    });
    all
}

fn spec<T: DeserializeOwned>(object: &DynamicObject) -> Result<T, String> {
    let spec = object.data.get("spec").cloned().unwrap_or(Value::Null);
    serde_json::from_value(spec).map_err(|error| format!("spec: {error}"))
}

fn report(kind: &'static str, object: &DynamicObject, details: GatewayDetails) -> GatewayStatus {
    GatewayStatus {
        kind,
        namespace: object.namespace().unwrap_or_default(),
        name: object.name_any(),
        uid: object.uid().unwrap_or_default(),
        generation: object.metadata.generation.unwrap_or_default(),
        details,
    }
}

/// Whether a Service selects the proxies of a Gateway.
pub(crate) fn is_of_a_gateway(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    let selector = spec.and_then(|spec| spec.selector.as_ref());
    selector.is_some_and(|selector| selector.contains_key(GATEWAY_LABEL))
}

/// The names of all Services, and the names with each port.
fn services(all: &[Arc<Service>]) -> (BTreeSet<String>, BTreeSet<(String, u16)>) {
    let (mut names, mut ports) = (BTreeSet::new(), BTreeSet::new());
    for service in all {
        let namespace = service.namespace().unwrap_or_default();
        let name = format!("{namespace}/{}", service.name_any());
        let own = service.spec.iter().filter_map(|spec| spec.ports.as_ref());
        for port in own.flatten() {
            if let Ok(port) = u16::try_from(port.port) {
                ports.insert((name.clone(), port));
            }
        }
        names.insert(name);
    }
    (names, ports)
}

#[cfg(test)]
mod tests;
