//! Assembles resources into a mesh.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use merlon_api::MESH_NAME;
use merlon_config::{
    name::{ServiceName, SpiffeId},
    resource::{MeshConfigSpec, Resource, Spec},
    snapshot::{GrantedSecret, InboundService, MeshState, ResourceKind, WorkloadState},
};

use crate::{
    address::Addresses,
    attach::{Attachments, Target},
    declared::{Documents, Names},
    gateway::{self, Routes, name_of},
    grants::Grants,
    mesh::{Granted, Mesh, Proxy},
    select::Workloads,
    service,
    state::StateResource,
};

/// A mesh, with the parts of its services that the check needs.
pub(crate) struct Assembled {
    pub(crate) mesh: Mesh,
    pub(crate) inbound: Vec<InboundService>,
    pub(crate) documents: Documents,
}

/// Assembles the resources. Their order does not matter, but of two resources with the same name the first one is used.
pub(crate) fn assemble(resources: &[Resource], config: &MeshConfigSpec) -> Assembled {
    let attachments = Attachments::new(resources, &config.root_namespace);
    let workloads = Workloads::new(resources);
    let documents = Documents::new(resources);
    let names = Names::new(resources, &workloads);
    let routes = Routes::new(resources);
    let grants = Grants::new(resources);
    let state = MeshState {
        trust_domain: config.trust_domain.clone(),
        root_namespace: config.root_namespace.clone(),
        outbound: config.outbound,
        gateways: gateway::identities(resources, &config.trust_domain),
    };
    let mut inbound = BTreeMap::new();
    let mut destinations = BTreeMap::new();
    let mut services_of: Vec<BTreeSet<ServiceName>> = vec![BTreeSet::new(); workloads.all.len()];
    let mut proxies = Vec::new();
    for resource in resources {
        let name = name_of(resource);
        match &resource.spec {
            Spec::Service(spec) => {
                let serving = workloads.selected(&resource.namespace, spec);
                for index in &serving {
                    if let Some(services) = services_of.get_mut(*index) {
                        services.insert(name.clone());
                    }
                }
                destinations.entry(name.clone()).or_insert_with(|| {
                    let destination = service::destination(
                        &name,
                        spec,
                        &workloads,
                        &serving,
                        &state.trust_domain,
                    );
                    state_resource(ResourceKind::Destination, &name, &destination)
                });
                inbound.entry(name.clone()).or_insert_with(|| {
                    service::inbound(&name, spec, &attachments, &documents, &names)
                });
            }
            Spec::Gateway(spec) => {
                let policies = attachments.applying_to(Target::Gateway, &name);
                inbound
                    .entry(name.clone())
                    .or_insert_with(|| service::enforced(&name, &policies, &documents, &names));
                let own = gateway::state(&name, spec, &routes, &state.trust_domain);
                let backends = routes.backends(&name);
                proxies.push(proxy(name, own, backends));
            }
            _ => {}
        }
    }
    for (workload, services) in workloads.all.iter().zip(services_of) {
        let mut outbound = workload.spec.outbound.clone();
        outbound.sort_by_key(|listener| listener.listen);
        let called = outbound
            .iter()
            .map(|listener| listener.service.clone())
            .collect();
        let own = WorkloadState {
            identity: workload.identity(&state.trust_domain),
            services: services.into_iter().collect(),
            outbound,
            permissive: config
                .permissive_namespaces
                .contains(&workload.resource.namespace),
            secrets: grants.of(&workload.workload_id()),
            gateway: None,
        };
        proxies.push(proxy(name_of(workload.resource), own, called));
    }
    let services = inbound.iter().map(|(name, service)| {
        (
            name.clone(),
            state_resource(ResourceKind::Service, name, service),
        )
    });
    Assembled {
        mesh: Mesh {
            config: config.clone(),
            mesh: Arc::new(StateResource::new(
                ResourceKind::Mesh,
                MESH_NAME.to_owned(),
                &state,
            )),
            state,
            proxies: by_identity(proxies),
            addresses: Addresses::new(resources, &workloads),
            services: services.collect(),
            destinations,
        },
        inbound: inbound.into_values().collect(),
        documents,
    }
}

fn granted(secret: &GrantedSecret) -> Granted {
    Granted {
        name: secret.name.clone(),
        path: secret.path.clone(),
    }
}

fn proxy(name: ServiceName, own: WorkloadState, destinations: BTreeSet<ServiceName>) -> Proxy {
    let state = state_resource(ResourceKind::Workload, &name, &own);
    let certificates = own.gateway.as_ref().map(gateway::certificates);
    Proxy {
        certificates: certificates.unwrap_or_default(),
        secrets: own.secrets.iter().map(granted).collect(),
        name,
        gateway: own.gateway.is_some(),
        identity: own.identity,
        services: own.services,
        destinations,
        state,
    }
}

fn by_identity(mut proxies: Vec<Proxy>) -> BTreeMap<SpiffeId, Vec<Arc<Proxy>>> {
    proxies.sort_by(|a, b| a.name.cmp(&b.name));
    let mut by_identity: BTreeMap<_, Vec<Arc<Proxy>>> = BTreeMap::new();
    for proxy in proxies {
        let list = by_identity.entry(proxy.identity.clone()).or_default();
        list.push(Arc::new(proxy));
    }
    by_identity
}

fn state_resource<T: serde::Serialize>(
    kind: ResourceKind,
    name: &ServiceName,
    content: &T,
) -> Arc<StateResource> {
    Arc::new(StateResource::new(kind, name.to_string(), content))
}
