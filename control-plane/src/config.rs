//! What a control plane is started with.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// All that [`crate::app::run`] needs. The program makes it of flags, environment and file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlPlaneConfig {
    /// Where resources come from.
    pub source: Source,
    /// Where proxies reach it.
    pub listen: SocketAddr,
    /// `/live`, `/ready`, `/metrics`.
    pub admin: SocketAddr,
    /// The Unix socket for administration.
    pub admin_socket: PathBuf,
    /// Where the embedded CA, join tokens and the ledger are kept; made with mode 0700 if it is not there.
    pub state_dir: PathBuf,
    /// How long open streams may take to end at the end.
    pub drain_timeout: Duration,
}

/// Where resources come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A directory of files.
    Files(PathBuf),
    /// A cluster: the one that this runs in, or that the kubeconfig names.
    Kubernetes(KubernetesConfig),
}

/// What a control plane in a cluster knows of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubernetesConfig {
    /// The name of this replica: its pod's.
    pub replica: String,
    /// The namespace that it is in.
    pub namespace: String,
    /// Whether Gateway API is followed: gateways, their routes and their certificates.
    pub gateways: bool,
    /// Where the API server asks, if it does.
    pub webhook: Option<WebhookConfig>,
}

/// How admission is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookConfig {
    /// Where the API server calls, over TLS.
    pub listen: SocketAddr,
    /// The file of the injector's settings; changes are taken over live.
    pub injection: PathBuf,
}

impl ControlPlaneConfig {
    /// A control plane on loopback ports that the system chooses, with everything in two folders: for tests.
    pub fn on_loopback(config: PathBuf, state_dir: PathBuf) -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            source: Source::Files(config),
            listen: any,
            admin: any,
            admin_socket: state_dir.join(ADMIN_SOCKET),
            state_dir,
            drain_timeout: Duration::from_secs(5),
        }
    }
}

pub(crate) const ADMIN_SOCKET: &str = "admin.sock";
