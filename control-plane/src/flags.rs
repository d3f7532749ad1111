//! Builds a [`ControlPlaneConfig`] from arguments, environment and bootstrap file, or a report of all problems.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{
    Parser,
    builder::{PossibleValuesParser, TypedValueParser},
};
use merlon_config::{
    bootstrap::{ControlPlaneBootstrap, PodAddressCheck},
    report::{Problem, Report},
};

use crate::{
    config::{ADMIN_SOCKET, ControlPlaneConfig, KubernetesConfig, Source, WebhookConfig},
    limits::Limits,
};

/// Merlon's control plane: compiles the resources of a directory or a Kubernetes cluster, issues certificates, and pushes to
/// every proxy the state that it needs.
///
/// Every flag can also be an environment variable, or a field of the file that `--bootstrap` names. A flag overrides the
/// environment, and the environment overrides the file. Logs are JSON lines on standard error.
#[derive(Debug, Default, Parser)]
#[command(
    name = "merlon-control-plane",
    version,
    max_term_width = 100,
    after_help = "\
Example:
  merlon-control-plane --config config/examples/shop
  merlon-control-plane --kubernetes --replica \"$HOSTNAME\" --namespace merlon-system

Exit codes: 0 stopped by a signal, 1 failed, 2 invalid configuration (all problems are printed, nothing is changed)."
)]
pub struct Flags {
    /// Directory of resource files; changes apply without a restart
    #[arg(long, env = "MERLON_CONFIG", value_name = "DIR")]
    pub config: Option<PathBuf>,
    /// Read the resources of the Kubernetes cluster that this runs in, or that KUBECONFIG names, instead of files
    #[arg(
        long,
        env = "MERLON_KUBERNETES",
        value_name = "BOOL",
        num_args = 0..=1,
        default_missing_value = "true",
        conflicts_with = "config"
    )]
    pub kubernetes: Option<bool>,
    /// With --kubernetes: name of this replica, which is the name of its pod [default: host name]
    #[arg(long, env = "MERLON_REPLICA", value_name = "NAME")]
    pub replica: Option<String>,
    /// With --kubernetes: namespace of Merlon's own objects [default: merlon-system]
    #[arg(long, env = "MERLON_NAMESPACE", value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// With --kubernetes: serve Gateway API (`Gateway` and `HTTPRoute`) with the Secrets of the control plane's namespace
    #[arg(
        long,
        env = "MERLON_GATEWAY_API",
        value_name = "BOOL",
        num_args = 0..=1,
        default_missing_value = "true"
    )]
    pub gateway_api: Option<bool>,
    /// With --kubernetes: whether a pod's token is accepted only from an address of that pod. `warn` accepts, logs and counts
    /// it, for networks that translate the addresses of pods [default: enforce]
    #[arg(long, env = "MERLON_POD_ADDRESS_CHECK", value_name = "MODE", value_parser = pod_address_check())]
    pub pod_address_check: Option<PodAddressCheck>,
    /// With --kubernetes: file of the injector's settings; enables the admission webhooks
    #[arg(long, env = "MERLON_INJECTION", value_name = "FILE")]
    pub injection: Option<PathBuf>,
    /// With --injection: listener of the admission webhooks [default: 0.0.0.0:7566]
    #[arg(long, env = "MERLON_WEBHOOK", value_name = "ADDRESS")]
    pub webhook: Option<SocketAddr>,
    /// With --injection: second listener of the admission webhooks, which the API server calls while no replica is ready
    /// [default: 0.0.0.0:7568]
    #[arg(long, env = "MERLON_WEBHOOK_FALLBACK", value_name = "ADDRESS")]
    pub webhook_fallback: Option<SocketAddr>,
    /// YAML file with the same fields as these flags, in camelCase
    #[arg(long, env = "MERLON_BOOTSTRAP", value_name = "FILE")]
    pub bootstrap: Option<PathBuf>,
    /// Listener for proxies [default: 0.0.0.0:7564]
    #[arg(long, env = "MERLON_LISTEN", value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,
    /// Unix socket for administration [default: admin.sock in the state directory]
    #[arg(long, env = "MERLON_ADMIN_SOCKET", value_name = "FILE")]
    pub admin_socket: Option<PathBuf>,
    /// Listener of `/live`, `/ready` and `/metrics` [default: 127.0.0.1:7565]
    #[arg(long, env = "MERLON_ADMIN", value_name = "ADDRESS")]
    pub admin: Option<SocketAddr>,
    /// Directory of the embedded CA, join tokens and the ledger [default: merlon-state]
    #[arg(long, env = "MERLON_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// File to write the bound addresses to, as JSON: `listen`, `admin`, `adminSocket`
    #[arg(long, value_name = "FILE")]
    pub addresses_file: Option<PathBuf>,
    /// JSON file with other times and limits, for tests; only debug builds have this flag
    #[cfg(debug_assertions)]
    #[arg(long, value_name = "FILE", hide = true)]
    pub test_limits: Option<PathBuf>,
    /// File with seconds that are added to the system clock, read again when it changes; only debug builds have this flag
    #[cfg(debug_assertions)]
    #[arg(long, value_name = "FILE", hide = true)]
    pub test_clock: Option<PathBuf>,
}

fn pod_address_check() -> impl TypedValueParser<Value = PodAddressCheck> {
    PossibleValuesParser::new(["enforce", "warn"]).map(|mode| match &*mode {
        "warn" => PodAddressCheck::Warn,
        _ => PodAddressCheck::Enforce,
    })
}

impl Flags {
    /// Merges the flags with the bootstrap file.
    ///
    /// # Errors
    /// Every problem of the file, and every missing value.
    pub fn resolve(&self) -> Result<ControlPlaneConfig, Report> {
        #[cfg(debug_assertions)]
        if let Some(file) = &self.test_clock {
            merlon_config::clock::follow(file)?;
        }
        let file = match &self.bootstrap {
            Some(file) => ControlPlaneBootstrap::load(file)?,
            None => ControlPlaneBootstrap::default(),
        };
        let any = |port| SocketAddr::from(([0, 0, 0, 0], port));
        let source = if self.kubernetes.or(file.kubernetes).unwrap_or(false) {
            let replica = self.replica.clone().or(file.replica).or_else(host_name);
            let namespace = self.namespace.clone().or(file.namespace);
            let webhook = self.injection.clone().or(file.injection);
            let listen = self.webhook.or(file.webhook);
            let fallback = self.webhook_fallback.or(file.webhook_fallback);
            Source::Kubernetes(KubernetesConfig {
                replica: name_of_replica(replica)?,
                namespace: namespace.unwrap_or_else(|| "merlon-system".to_owned()),
                pod_address_check: self
                    .pod_address_check
                    .or(file.pod_address_check)
                    .unwrap_or_default(),
                gateways: self.gateway_api.or(file.gateway_api).unwrap_or(false),
                webhook: webhook.map(|injection| WebhookConfig {
                    listen: listen.unwrap_or_else(|| any(7566)),
                    fallback: fallback.unwrap_or_else(|| any(7568)),
                    injection,
                }),
            })
        } else if let Some(config) = self.config.clone().or(file.config) {
            Source::Files(config)
        } else {
            let problem = Problem::error("--config", "no directory of resource files is given");
            return Err(Report::from_iter([problem.hint(
                "write `--config DIR` or `config: DIR` in the bootstrap file, or `--kubernetes` in a cluster",
            )]));
        };
        let state_dir = self.state_dir.clone().or(file.state_dir);
        let state_dir = state_dir.unwrap_or_else(|| PathBuf::from("merlon-state"));
        let admin_socket = self.admin_socket.clone().or(file.admin_socket);
        let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Ok(ControlPlaneConfig {
            source,
            listen: self.listen.or(file.listen).unwrap_or_else(|| any(7564)),
            admin: self.admin.or(file.admin).unwrap_or_else(|| loopback(7565)),
            admin_socket: admin_socket.unwrap_or_else(|| state_dir.join(ADMIN_SOCKET)),
            state_dir,
            drain_timeout: Duration::from_secs(30),
            limits: self.limits()?,
        })
    }

    #[cfg(debug_assertions)]
    fn limits(&self) -> Result<Limits, Report> {
        self.test_limits
            .as_deref()
            .map_or_else(|| Ok(Limits::default()), Limits::load)
    }

    #[cfg(not(debug_assertions))]
    #[expect(
        clippy::unnecessary_wraps,
        clippy::unused_self,
        reason = "debug builds read a file"
    )]
    fn limits(&self) -> Result<Limits, Report> {
        Ok(Limits::default())
    }
}

fn host_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim().to_lowercase())
}

/// The name of the replica becomes a part of object names.
fn name_of_replica(name: Option<String>) -> Result<String, Report> {
    let name = name.unwrap_or_default();
    match name.parse::<merlon_config::name::ResourceName>() {
        Ok(_) => Ok(name),
        Err(error) => {
            let problem = Problem::error("--replica", error.to_string());
            Err(Report::from_iter([problem.hint(
                "write the pod's name, as `--replica merlon-control-plane-0`",
            )]))
        }
    }
}
