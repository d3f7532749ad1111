//! The configuration of a control plane.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use merlon_config::bootstrap::PodAddressCheck;

use crate::limits::Limits;

/// The input of [`crate::app::run`]. The program builds it from flags, environment and bootstrap file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlPlaneConfig {
    /// The source of resources.
    pub source: Source,
    /// The listener for proxies.
    pub listen: SocketAddr,
    /// The listener of `/live`, `/ready` and `/metrics`.
    pub admin: SocketAddr,
    /// The Unix socket for administration.
    pub admin_socket: PathBuf,
    /// The directory of the embedded CA, join tokens and the ledger; created with mode 0700.
    pub state_dir: PathBuf,
    /// How long open streams may take to end on shutdown.
    pub drain_timeout: Duration,
    /// Times and limits.
    pub limits: Limits,
}

/// The source of resources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A directory of files.
    Files(PathBuf),
    /// A Kubernetes cluster: the one that the process runs in, or the one of the kubeconfig.
    Kubernetes(KubernetesConfig),
}

/// The settings of a replica in a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubernetesConfig {
    /// The name of this replica, which is the name of its pod.
    pub replica: String,
    /// The namespace of the control plane.
    pub namespace: String,
    /// Whether Gateway API is watched: gateways, routes and certificates.
    pub gateways: bool,
    /// Whether a pod's token is accepted only from an address of that pod.
    pub pod_address_check: PodAddressCheck,
    /// The admission webhooks, if enabled.
    pub webhook: Option<WebhookConfig>,
}

/// The admission webhooks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookConfig {
    /// The TLS listener for the API server.
    pub listen: SocketAddr,
    /// The second one, for the time when no replica is ready.
    pub fallback: SocketAddr,
    /// The file of the injector's settings; changes apply without a restart.
    pub injection: PathBuf,
}

impl ControlPlaneConfig {
    /// A control plane for tests, on loopback ports that the system chooses, with two directories.
    pub fn on_loopback(config: PathBuf, state_dir: PathBuf) -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            source: Source::Files(config),
            listen: any,
            admin: any,
            admin_socket: state_dir.join(ADMIN_SOCKET),
            state_dir,
            drain_timeout: Duration::from_secs(5),
            limits: Limits::default(),
        }
    }
}

pub(crate) const ADMIN_SOCKET: &str = "admin.sock";
