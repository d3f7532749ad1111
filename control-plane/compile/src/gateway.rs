//! Gateways: their listeners, their routes, and the backends of these routes.

use std::collections::{BTreeMap, BTreeSet};

use merlon_config::{
    name::{ResourceName, ServiceName, SpiffeId, TrustDomain, WorkloadId},
    resource::{GatewaySpec, HttpRouteSpec, Resource, Spec},
    snapshot::{GatewayRoute, GatewayState, WorkloadState},
};

/// Routes by parent Gateway: the oldest first, and routes of the same age by name. So a new route takes no request from
/// an existing route with equal matches (Gateway API, `HTTPRouteRule.matches`).
#[derive(Debug)]
pub(crate) struct Routes<'a>(BTreeMap<ServiceName, Vec<(ServiceName, &'a HttpRouteSpec)>>);

impl<'a> Routes<'a> {
    pub(crate) fn new(resources: &'a [Resource]) -> Self {
        let mut routes: BTreeMap<_, Vec<(ServiceName, &HttpRouteSpec)>> = BTreeMap::new();
        let mut oldest_first: Vec<(&Resource, &HttpRouteSpec)> = resources
            .iter()
            .filter_map(|resource| match &resource.spec {
                Spec::HttpRoute(spec) => Some((resource, spec)),
                _ => None,
            })
            .collect();
        oldest_first.sort_by_cached_key(|(resource, _)| (resource.created, name_of(resource)));
        for (resource, spec) in oldest_first {
            let parents: BTreeSet<_> = spec
                .parent_refs
                .iter()
                .map(|parent| ServiceName {
                    namespace: parent
                        .namespace
                        .as_ref()
                        .unwrap_or(&resource.namespace)
                        .clone(),
                    name: parent.name.clone(),
                })
                .collect();
            for parent in parents {
                routes
                    .entry(parent)
                    .or_default()
                    .push((name_of(resource), spec));
            }
        }
        Self(routes)
    }

    fn of(&self, gateway: &ServiceName) -> &[(ServiceName, &'a HttpRouteSpec)] {
        self.0.get(gateway).map_or(&[], Vec::as_slice)
    }

    /// The backends of a gateway's routes.
    pub(crate) fn backends(&self, gateway: &ServiceName) -> BTreeSet<ServiceName> {
        let routes = self.of(gateway).iter();
        routes
            .flat_map(|(route, spec)| {
                let refs = spec.rules.iter().flat_map(|rule| &rule.backend_refs);
                refs.map(|backend| ServiceName {
                    namespace: backend
                        .namespace
                        .as_ref()
                        .unwrap_or(&route.namespace)
                        .clone(),
                    name: backend.name.clone(),
                })
            })
            .collect()
    }
}

/// The state of the gateway's own proxy.
pub(crate) fn state(
    name: &ServiceName,
    spec: &GatewaySpec,
    routes: &Routes<'_>,
    trust_domain: &TrustDomain,
) -> WorkloadState {
    let routes = routes.of(name).iter().map(|(route, spec)| GatewayRoute {
        name: route.clone(),
        spec: (*spec).clone(),
    });
    WorkloadState {
        identity: identity(name, spec, trust_domain),
        services: vec![name.clone()],
        outbound: Vec::new(),
        permissive: false,
        secrets: Vec::new(),
        gateway: Some(GatewayState {
            name: name.clone(),
            listeners: spec.listeners.clone(),
            routes: routes.collect(),
        }),
    }
}

fn identity(name: &ServiceName, spec: &GatewaySpec, trust_domain: &TrustDomain) -> SpiffeId {
    trust_domain.spiffe_id(&WorkloadId {
        namespace: name.namespace.clone(),
        service_account: account(spec, &name.name).clone(),
    })
}

/// The identities of all gateways.
pub(crate) fn identities(resources: &[Resource], trust_domain: &TrustDomain) -> BTreeSet<SpiffeId> {
    let all = resources
        .iter()
        .filter_map(|resource| match &resource.spec {
            Spec::Gateway(spec) => Some(identity(&name_of(resource), spec, trust_domain)),
            _ => None,
        });
    all.collect()
}

/// The Secrets that the gateway's listeners reference.
pub(crate) fn certificates(gateway: &GatewayState) -> BTreeSet<ServiceName> {
    let listeners = gateway.listeners.iter();
    let refs = listeners.filter_map(|listener| listener.tls.as_ref());
    refs.flat_map(|tls| &tls.certificate_refs)
        .map(|secret| ServiceName {
            namespace: gateway.name.namespace.clone(),
            name: secret.name.clone(),
        })
        .collect()
}

fn account<'a>(spec: &'a GatewaySpec, name: &'a ResourceName) -> &'a ResourceName {
    spec.service_account.as_ref().unwrap_or(name)
}

pub(crate) fn name_of(resource: &Resource) -> ServiceName {
    ServiceName {
        namespace: resource.namespace.clone(),
        name: resource.name.clone(),
    }
}
