//! Resources in, the mesh out.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use merlon_api::MESH_NAME;
use merlon_config::{
    Resources,
    load::Loaded,
    name::{ServiceName, SpiffeId},
    report::{Problem, Report},
    resource::{MeshConfigSpec, Resource, Spec},
    snapshot::{GrantedSecret, InboundService, MeshState, ResourceKind, WorkloadState},
};

use crate::{
    address::Addresses,
    attach::{Attachments, Target},
    check,
    declared::{Documents, Names},
    gateway::{self, Routes, name_of},
    grants::Grants,
    mesh::{Granted, Mesh, Proxy},
    select::Workloads,
    service,
    state::StateResource,
};

/// Turns resources into a mesh, and remembers the last good one so as not to check twice what did not change.
#[derive(Debug, Default)]
pub struct Compiler {
    last: Option<Arc<Mesh>>,
    good: check::Good,
}

impl Compiler {
    /// A compiler that has compiled nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Compiles all resources: also what they say that only the decision point can read, Cedar text and JSON Schema,
    /// so that what a proxy would refuse is refused at its source.
    ///
    /// # Errors
    /// Every problem, at its file, line and column. The last good mesh stays what [`Compiler::last`] gives.
    pub fn compile(&mut self, resources: &Resources) -> Result<Arc<Mesh>, Report> {
        let Some((_, config)) = resources.mesh() else {
            let problem = Problem::error("", "there is no `MeshConfig`, so the mesh has no name")
                .hint(
                    "write one: `kind: MeshConfig` with `spec.trustDomain`, in the root namespace",
                );
            return Err(Report::from_iter([problem]));
        };
        let assembled = assemble(&resources.list, config);
        let (report, good) = check::check(resources, &assembled, &self.good);
        if report.has_errors() {
            return Err(report);
        }
        self.good = good;
        let mesh = Arc::new(assembled.mesh);
        self.last = Some(Arc::clone(&mesh));
        Ok(mesh)
    }

    /// Compiles what was read. Where something is wrong with it, says also everything else that is.
    ///
    /// # Errors
    /// As [`Compiler::compile`], after what reading found.
    pub fn compile_loaded(&mut self, loaded: Loaded) -> Result<(Resources, Arc<Mesh>), Report> {
        if !loaded.report.has_errors() {
            let resources = loaded.into_result()?;
            let mesh = self.compile(&resources)?;
            return Ok((resources, mesh));
        }
        // Policies of a mesh without a name are still Cedar or not.
        let unnamed = unnamed();
        let config = loaded.resources.mesh().map(|(_, config)| config);
        let config = config.or(unnamed.as_ref());
        let more = config.map(|config| {
            let assembled = assemble(&loaded.resources.list, config);
            check::more(&loaded, &assembled)
        });
        let mut report = loaded.report;
        report.extend(more.unwrap_or_default());
        Err(report)
    }

    /// The last good mesh.
    pub fn last(&self) -> Option<&Arc<Mesh>> {
        self.last.as_ref()
    }
}

fn unnamed() -> Option<MeshConfigSpec> {
    serde_json::from_value(serde_json::json!({ "trustDomain": "unnamed.invalid" })).ok()
}

/// A mesh, with what its services are made of for those who look at them once more.
pub(crate) struct Assembled {
    pub(crate) mesh: Mesh,
    pub(crate) inbound: Vec<InboundService>,
    pub(crate) documents: Documents,
}

/// Puts the resources together. Order of the resources does not matter; of two with one name the first counts.
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
    let mut serves: Vec<BTreeSet<ServiceName>> = vec![BTreeSet::new(); workloads.all.len()];
    let mut proxies = Vec::new();
    for resource in resources {
        let name = name_of(resource);
        match &resource.spec {
            Spec::Service(spec) => {
                let serving = workloads.selected(&resource.namespace, spec);
                for index in &serving {
                    if let Some(services) = serves.get_mut(*index) {
                        services.insert(name.clone());
                    }
                }
                destinations.entry(name.clone()).or_insert_with(|| {
                    let found = service::destination(
                        &name,
                        spec,
                        &workloads,
                        &serving,
                        &state.trust_domain,
                    );
                    sealed(ResourceKind::Destination, &name, &found)
                });
                inbound.entry(name.clone()).or_insert_with(|| {
                    service::inbound(&name, spec, &attachments, &documents, &names)
                });
            }
            Spec::Gateway(spec) => {
                let reaching = attachments.reaching(Target::Gateway, &name);
                inbound
                    .entry(name.clone())
                    .or_insert_with(|| service::enforced(&name, &reaching, &documents, &names));
                let own = gateway::state(&name, spec, &routes, &state.trust_domain);
                let backends = routes.backends(&name);
                proxies.push(proxy(name, own, backends));
            }
            _ => {}
        }
    }
    for (workload, services) in workloads.all.iter().zip(serves) {
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
    let services = inbound
        .iter()
        .map(|(name, service)| (name.clone(), sealed(ResourceKind::Service, name, service)));
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
    let state = sealed(ResourceKind::Workload, &name, &own);
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

fn sealed<T: serde::Serialize>(
    kind: ResourceKind,
    name: &ServiceName,
    content: &T,
) -> Arc<StateResource> {
    Arc::new(StateResource::new(kind, name.to_string(), content))
}
