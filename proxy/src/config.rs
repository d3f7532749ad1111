//! The validated configuration of a proxy.

use std::{net::SocketAddr, num::NonZeroUsize, path::PathBuf, time::Duration};

use merlon_api::JoinToken;
use merlon_config::{
    name::{Namespace, ServiceName, WorkloadId},
    probe::Probes,
};

pub use merlon_config::bootstrap::AccessLogMode;

use crate::limits::Limits;

/// The input of `app::start`, built from flags, environment and file.
#[derive(Debug, Clone)]
pub struct ProxyConfig {
    /// The workload or gateway that this proxy runs for.
    pub subject: Subject,
    /// The source of its state.
    pub source: Source,
    /// Directory of key, certificate, last snapshot and administration socket; mode 0700. `None`: nothing is saved.
    pub state_dir: Option<PathBuf>,
    /// Directory for secrets that are granted to the program as files. `None`: none are written.
    pub secrets_dir: Option<PathBuf>,
    /// Listener for other proxies. Not used by a gateway.
    pub inbound: SocketAddr,
    /// Listener for requests of the local program. Not used by a gateway.
    pub outbound: SocketAddr,
    /// Whether network rules redirect connections with other destinations to `inbound` and `outbound`.
    pub interception: bool,
    /// Listener for `/live`, `/ready` and `/metrics`.
    pub admin: SocketAddr,
    /// Listener for the kubelet's probes of the program, and the probes.
    pub probes: Option<(SocketAddr, Probes)>,
    /// Worker threads.
    pub workers: NonZeroUsize,
    /// Which requests are logged.
    pub access_log: AccessLogMode,
    /// How long open requests may take to finish during the shutdown.
    pub drain_timeout: Duration,
    /// Bounds and time limits; the defaults, except in tests.
    pub limits: Limits,
}

/// The workload or gateway that a proxy runs for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// A workload on the same host or in the same pod.
    Sidecar {
        /// The identity of the workload.
        identity: WorkloadId,
        /// Selects one of several Workloads with this identity.
        workload: Option<String>,
    },
    /// A Gateway.
    Gateway {
        /// Its name.
        name: ServiceName,
        /// Its identity.
        identity: WorkloadId,
    },
}

/// The source of the state.
#[derive(Debug, Clone)]
pub enum Source {
    /// A control plane.
    ControlPlane {
        /// For example `https://host:7564`.
        address: url::Url,
        /// The namespace of the control plane's identity.
        root_namespace: Namespace,
        /// For the first certificate.
        join_token: Option<JoinToken>,
        /// In a cluster, instead of a join token.
        pod_token: Option<PodToken>,
        /// PEM file with the roots of the mesh, instead of the root that the join token pins.
        trust_bundle: Option<PathBuf>,
    },
    /// Resource files.
    Standalone {
        /// The directory of resource files.
        directory: PathBuf,
        /// `None`: plain connections with anonymous peers.
        identity: Option<IdentityFiles>,
    },
}

/// The pod's credentials in a cluster: files that the kubelet refreshes. Each is read at every use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodToken {
    /// The projected service account token, of the audience `merlon`.
    pub token: PathBuf,
    /// PEM file with the roots of the mesh.
    pub trust_bundle: PathBuf,
    /// File that holds the trust domain.
    pub trust_domain: PathBuf,
}

/// An identity from files, for standalone mode. Changes apply live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityFiles {
    /// PEM, leaf first.
    pub certificate: PathBuf,
    /// PEM, PKCS#8, ECDSA P-256.
    pub key: PathBuf,
    /// PEM, the roots of the mesh.
    pub trust_bundle: PathBuf,
}

impl Subject {
    /// The identity that it runs as.
    pub fn identity(&self) -> &WorkloadId {
        match self {
            Self::Sidecar { identity, .. } | Self::Gateway { identity, .. } => identity,
        }
    }

    /// Whether this is a gateway.
    pub fn is_gateway(&self) -> bool {
        matches!(self, Self::Gateway { .. })
    }
}

/// Default of `drain_timeout`.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
