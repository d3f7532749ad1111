//! What all workers share: one value of each kind, swapped whole by the control thread, read without locks.

pub mod destinations;
pub mod readiness;
pub(crate) mod secrets;
use std::{
    collections::{BTreeMap, HashMap},
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use merlon_certs::MeshTls;
use merlon_config::{
    live::Live,
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
use tokio_util::sync::CancellationToken;

use self::{
    destinations::Destinations,
    readiness::Health,
    secrets::{Credentials, Secrets},
};
use crate::{
    config::AccessLogMode,
    control::jwks::JwksCache,
    downstream::listener::Claims,
    gateway::{certificate::Certificates, listen::Port},
    telemetry::{
        decision_log::DecisionLog, egress_log::Outside, metrics::WorkerMetrics, spans::Spans,
    },
};

/// Everything a worker needs beside its own listeners. One per process, `Send` and `Sync`.
#[derive(Debug)]
pub struct Shared {
    /// The state in force. `None`: cold, refuse everything. A request takes it once with `load_full`;
    /// whatever outlives a request watches it and is decided again.
    pub snapshot: Live<Option<Arc<Snapshot>>>,
    /// The identity in force. `None`: none yet, or expired: accept nothing and dial nobody over mesh TLS, and close
    /// what is open when it becomes so. Always `None` in standalone mode without identity.
    pub identity: Live<Option<Arc<MeshTls>>>,
    /// Whether this process is meant to have an identity. False only in standalone mode without one: the inbound
    /// listener then takes plain connections, and every peer is anonymous.
    pub has_identity: bool,
    /// Keys of token issuers.
    pub keys: JwksCache,
    /// Asks for destinations that the snapshot does not have yet.
    pub destinations: Destinations,
    /// Recorded facts of decisions.
    pub decisions: DecisionLog,
    /// What the own program called outside the mesh.
    pub outside: Outside,
    /// Finished spans go here; costs nothing when no collector is configured.
    pub spans: Spans,
    /// Addresses of the snapshot's listeners, of which each worker has its socket.
    pub listeners: Claims,
    /// Whether the process is ready, and why not.
    pub health: Health,
    /// Which requests are logged.
    pub access_log: AccessLogMode,
}

/// What a worker thread begins with; `worker::run` takes it.
#[derive(Debug)]
pub struct Worker {
    /// From 0.
    pub index: usize,
    /// Shared with all other workers.
    pub shared: Arc<Shared>,
    /// Only this worker's: it counts, a scrape adds up.
    pub metrics: Arc<WorkerMetrics>,
    /// Where other proxies reach this one, already listening (`SO_REUSEPORT`), non-blocking. Not for a gateway.
    pub inbound: Vec<TcpListener>,
    /// Where the program finds services, likewise. Not for a gateway.
    pub outbound: Vec<TcpListener>,
    /// Whether rules of the network lead connections here that were meant to go elsewhere.
    pub interception: bool,
    /// When to drain and when to end.
    pub shutdown: Shutdown,
}

/// The two steps of the end.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    /// Stop accepting, send GOAWAY and `Connection: close`, let open requests finish, then return.
    pub drain: CancellationToken,
    /// The drain timeout is over: return now.
    pub end: CancellationToken,
}

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

/// How long the drain may take when nothing else is said.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// Where a process really listens, once port 0 was resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// Mesh TLS from other proxies. `None` in a gateway.
    pub inbound: Option<SocketAddr>,
    /// The program's calls. `None` in a gateway.
    pub outbound: Option<SocketAddr>,
    /// `/live`, `/ready`, `/metrics`.
    pub admin: SocketAddr,
    /// A node's probes of the program, if they are answered.
    pub probes: Option<SocketAddr>,
}
