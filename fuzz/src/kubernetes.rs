//! Objects of a cluster.

use merlon_config::resource::{Resource, Spec};
use merlon_control_plane::fuzzing;
use serde_json::Value;

const NAMESPACE: &str = "merlon-system";

/// A route reaches a Service of another namespace only if there is a ReferenceGrant; a gateway is in Merlon's namespace
/// and has a listener.
pub(crate) fn gateways(bytes: &[u8]) {
    let Ok(objects) = serde_json::from_slice::<Vec<Value>>(bytes) else {
        return;
    };
    let (resources, reports) = fuzzing::gateways(NAMESPACE, &objects);
    assert!(reports.iter().all(Value::is_object));
    for resource in &resources {
        match &resource.spec {
            Spec::Gateway(gateway) => {
                assert_eq!(resource.namespace.as_str(), NAMESPACE);
                assert!(!gateway.listeners.is_empty());
            }
            Spec::HttpRoute(route) => {
                let refs = route.rules.iter().flat_map(|rule| &rule.backend_refs);
                for namespace in refs.filter_map(|backend| backend.namespace.as_ref()) {
                    assert!(
                        *namespace == resource.namespace || has_grant(&objects, namespace.as_str()),
                        "{namespace} for {}",
                        resource.origin
                    );
                }
            }
            other => panic!("{other:?}"),
        }
    }
}

fn has_grant(objects: &[Value], namespace: &str) -> bool {
    objects.iter().any(|object| {
        object["kind"] == "ReferenceGrant" && object["metadata"]["namespace"] == namespace
    })
}

/// The Workloads and Services of pods, Services and EndpointSlices: an address belongs to one Workload, and a
/// Service's endpoints do not depend on the order of the objects.
pub(crate) fn workloads(bytes: &[u8]) {
    let Ok(objects) = serde_json::from_slice::<Vec<Value>>(bytes) else {
        return;
    };
    let found = fuzzing::workloads(&objects);
    let mut addresses = std::collections::BTreeSet::new();
    for resource in &found {
        match &resource.spec {
            Spec::Workload(workload) => {
                for address in &workload.addresses {
                    assert!(addresses.insert(*address), "{address} belongs to two pods");
                }
            }
            Spec::Service(service) => {
                assert!(!service.selector.is_empty() && !service.ports.is_empty());
            }
            other => panic!("{other:?}"),
        }
    }
    let endpoints = |all: &[Resource]| {
        let services = all.iter().filter_map(|resource| match &resource.spec {
            Spec::Service(service) => Some((resource.origin.clone(), service.endpoints.clone())),
            _ => None,
        });
        let mut services: Vec<_> = services.collect();
        services.sort();
        services
    };
    let mut reversed = objects;
    reversed.reverse();
    assert_eq!(endpoints(&fuzzing::workloads(&reversed)), endpoints(&found));
}
