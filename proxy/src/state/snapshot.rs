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

/// One consistent, compiled state. Immutable.
#[derive(Debug)]
pub struct Snapshot {
    /// Hash of the manifest.
    pub version: Version,
    /// Settings of the whole mesh.
    pub mesh: Arc<MeshState>,
    /// The workload or gateway of this proxy: its services, outbound listeners, and in a gateway listeners and routes.
    pub workload: WorkloadState,
    /// Services that this proxy receives requests for (in a gateway: the gateway itself).
    pub services: HashMap<ServiceName, Arc<CompiledService>>,
    /// Services that are called from here. A missing one is looked up with `Destinations::ask`.
    pub destinations: HashMap<ServiceName, Arc<Destination>>,
    /// What is at addresses that were called from here. A missing one is looked up with `Destinations::ask_address`.
    pub addresses: HashMap<SocketAddr, AddressState>,
    /// Roots per trust domain.
    pub bundles: Vec<TrustBundle>,
    /// Ports of a gateway.
    pub(crate) ports: Vec<Port>,
    /// Pushed certificates of its listeners.
    pub(crate) certificates: Certificates,
    /// Granted secrets that have been read.
    pub(crate) secrets: Secrets,
    /// Request headers from granted secrets.
    pub(crate) credentials: Credentials,
    /// Every resource with its version, for the dump.
    pub resources: BTreeMap<ResourceKey, Version>,
}

/// A service as this proxy enforces it.
#[derive(Debug)]
pub struct CompiledService {
    /// The pushed state. Recorded decisions reference it, so that they can be explained later.
    pub state: Arc<InboundService>,
    /// The mesh that it was compiled for.
    pub mesh: Arc<MeshState>,
    /// Version of `state`. One version is compiled once and shared by later snapshots.
    pub version: Version,
    /// The compiled policies.
    pub policy: ServicePolicy,
    /// One per rule of `state.limits`, in the same order. An unchanged rule keeps its counters in the next snapshot.
    pub limiters: Vec<Arc<Limiter>>,
}

impl Snapshot {
    /// The services on this port of the program.
    pub fn services_on(&self, target_port: u16) -> impl Iterator<Item = &Arc<CompiledService>> {
        let names = self.workload.services.iter();
        let services = names.filter_map(|name| self.services.get(name));
        services.filter(move |service| {
            let mut ports = service.state.ports.iter();
            ports.any(|port| port.target_port == target_port)
        })
    }

    /// The identity of this proxy.
    pub fn identity(&self) -> &SpiffeId {
        &self.workload.identity
    }
}

impl CompiledService {
    /// Compiles one service. Expensive (milliseconds for many policies): do not call it on a worker thread.
    ///
    /// # Errors
    /// All problems of its policies.
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

/// Pushed certificates, by Secret.
pub(crate) type Certificates = HashMap<ServiceName, Arc<CertifiedKey>>;
