//! One consistent, compiled state.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::Arc,
};

use merlon_config::{
    name::{ServiceName, SpiffeId},
    snapshot::{
        AddressState, Destination, InboundService, MeshState, ResourceKey, TrustBundle, Version,
        WorkloadState,
    },
};
use merlon_policy::{
    limit::{LimitRegistry, Limiter},
    problem::PolicyProblem,
    service::ServicePolicy,
};
use rustls::sign::CertifiedKey;

use super::{
    gateway_ports::Port,
    secrets::{Credentials, Secrets},
};

/// One consistent, compiled state. Never changes once it is made.
#[derive(Debug)]
pub struct Snapshot {
    /// Hash of the manifest.
    pub version: Version,
    /// What holds for the whole mesh.
    pub mesh: Arc<MeshState>,
    /// The own workload or gateway: its services, outbound listeners, and in a gateway listeners and routes.
    pub workload: WorkloadState,
    /// Services whose requests come in here (in a gateway: the gateway itself).
    pub services: HashMap<ServiceName, Arc<CompiledService>>,
    /// Services that are called from here. One that is missing is asked for by [`Destinations::ask`].
    pub destinations: HashMap<ServiceName, Arc<Destination>>,
    /// What is at addresses that were called from here. One that is missing is asked for likewise.
    pub addresses: HashMap<SocketAddr, AddressState>,
    /// Roots per trust domain.
    pub bundles: Vec<TrustBundle>,
    /// A gateway's ports.
    pub(crate) ports: Vec<Port>,
    /// Its listeners' certificates that were pushed.
    pub(crate) certificates: Certificates,
    /// What the workload was granted, as far as it was ever read.
    pub(crate) secrets: Secrets,
    /// Headers of its calls by that.
    pub(crate) credentials: Credentials,
    /// Every resource with its version, for the dump.
    pub resources: BTreeMap<ResourceKey, Version>,
}

/// A service as it is enforced here.
#[derive(Debug)]
pub struct CompiledService {
    /// As it was pushed; recorded decisions keep it, so that they can be explained later.
    pub state: Arc<InboundService>,
    /// The mesh that it was compiled for.
    pub mesh: Arc<MeshState>,
    /// Version of `state`; the same version is compiled once and shared by later snapshots.
    pub version: Version,
    /// Decides.
    pub policy: ServicePolicy,
    /// One per rule of `state.limits`, in its order; a rule that did not change goes on counting over snapshots.
    pub limiters: Vec<Arc<Limiter>>,
}

impl Snapshot {
    /// The service that listens on this program port, the first by name where there are several.
    pub fn services_on(&self, target_port: u16) -> impl Iterator<Item = &Arc<CompiledService>> {
        let names = self.workload.services.iter();
        let services = names.filter_map(|name| self.services.get(name));
        services.filter(move |service| {
            let mut ports = service.state.ports.iter();
            ports.any(|port| port.target_port == target_port)
        })
    }

    /// Whom this proxy runs as.
    pub fn identity(&self) -> &SpiffeId {
        &self.workload.identity
    }
}

impl CompiledService {
    /// Compiles one service. Costly (milliseconds for many policies): not on a thread that carries requests.
    ///
    /// # Errors
    /// Every problem of its policies.
    pub fn compile(
        state: InboundService,
        mesh: &Arc<MeshState>,
        version: Version,
        limits: &LimitRegistry,
    ) -> Result<Self, Vec<PolicyProblem>> {
        let policy = ServicePolicy::compile(&state, mesh)?;
        Ok(Self {
            limiters: limits.limiters(&state),
            state: Arc::new(state),
            mesh: Arc::clone(mesh),
            version,
            policy,
        })
    }
}

/// Certificates that were pushed, by Secret.
pub(crate) type Certificates = HashMap<ServiceName, Arc<CertifiedKey>>;
