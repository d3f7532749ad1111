//! What a proxy is started with, checked.

use std::{net::SocketAddr, num::NonZeroUsize, path::PathBuf, time::Duration};

use merlon_api::JoinToken;
use merlon_config::{
    name::{Namespace, ServiceName, WorkloadId},
    probe::Probes,
};

pub use merlon_config::bootstrap::AccessLogMode;

/// All that `app::start` needs. `main.rs` makes it of flags, environment and file.
#[derive(Debug, Clone)]
pub struct ProxyConfig {
    /// Whose proxy this is.
    pub subject: Subject,
    /// Where its state comes from.
    pub source: Source,
    /// Where key, certificate, last snapshot and administration socket are kept; mode 0700. `None`: nowhere.
    pub state_dir: Option<PathBuf>,
    /// Where the program finds the secrets that it was granted as files. `None`: nowhere.
    pub secrets_dir: Option<PathBuf>,
    /// Where other proxies reach this one. Not used by a gateway.
    pub inbound: SocketAddr,
    /// Where the program finds services. Not used by a gateway.
    pub outbound: SocketAddr,
    /// Whether rules of the network lead connections to `inbound` and `outbound` that were meant to go elsewhere.
    pub interception: bool,
    /// `/live`, `/ready`, `/metrics`.
    pub admin: SocketAddr,
    /// Where a node's probes of the program are answered, and which there are.
    pub probes: Option<(SocketAddr, Probes)>,
    /// Threads that carry requests.
    pub workers: NonZeroUsize,
    /// Which requests are logged.
    pub access_log: AccessLogMode,
    /// How long open requests may take to finish at the end.
    pub drain_timeout: Duration,
}

/// Whose proxy it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// It stands beside a workload.
    Sidecar {
        /// Whom the workload runs as.
        identity: WorkloadId,
        /// Which Workload, where several with different settings run as the same.
        workload: Option<String>,
    },
    /// It is a Gateway.
    Gateway {
        /// Which.
        name: ServiceName,
        /// Whom it runs as.
        identity: WorkloadId,
    },
}

/// Where the state comes from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A control plane.
    ControlPlane {
        /// As `https://host:7564`.
        address: url::Url,
        /// The namespace that the control plane's identity is in.
        root_namespace: Namespace,
        /// For the first certificate.
        join_token: Option<JoinToken>,
        /// In a cluster, the pod's own token instead.
        pod_token: Option<PodToken>,
        /// PEM file with the mesh's roots, instead of the one that the join token pins.
        trust_bundle: Option<PathBuf>,
    },
    /// Files.
    Standalone {
        /// The directory of resource files.
        directory: PathBuf,
        /// Without: plain connections, anonymous peers.
        identity: Option<IdentityFiles>,
    },
}

/// What proves a pod in a cluster, as files that the cluster keeps new; each is read whenever it is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodToken {
    /// The projected service account token, of the audience `merlon`.
    pub token: PathBuf,
    /// PEM file with the mesh's roots.
    pub trust_bundle: PathBuf,
    /// File that holds the trust domain.
    pub trust_domain: PathBuf,
}

/// An identity as files, for standalone mode; taken over live when they change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityFiles {
    /// PEM, leaf first.
    pub certificate: PathBuf,
    /// PEM, PKCS#8, ECDSA P-256.
    pub key: PathBuf,
    /// PEM, the mesh's roots.
    pub trust_bundle: PathBuf,
}

impl Subject {
    /// Whom it runs as.
    pub fn identity(&self) -> &WorkloadId {
        match self {
            Self::Sidecar { identity, .. } | Self::Gateway { identity, .. } => identity,
        }
    }

    /// Whether it is a gateway.
    pub fn is_gateway(&self) -> bool {
        matches!(self, Self::Gateway { .. })
    }
}

/// How long the drain may take when nothing else is said.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
