//! Metrics, spans and the process log.

pub(crate) mod metrics;
pub(crate) mod spans;

/// The Kubernetes and Vault clients log each failure that they also return. The control plane logs it once.
const DEFAULT_FILTER: &str = "info,kube_client=off,rustify=off,vaultrs=off";

/// Writes the process log to standard error; `RUST_LOG` filters the events.
pub fn log_to_stderr() {
    merlon_net::process_log::to_stderr(DEFAULT_FILTER);
}
