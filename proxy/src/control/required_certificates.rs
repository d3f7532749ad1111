//! Reports the two settings with which a peer needs no certificate.

use crate::state::{shared::Shared, snapshot::Snapshot};

/// Reports that this process has no identity, so that all its connections are plain text.
pub(super) fn report_standalone() {
    report("--standalone without --certificate");
}

/// Reports a snapshot that permits plain text, unless the one in force did. Without interception, it has no effect: the port
/// for other proxies only accepts mutual TLS.
pub(super) fn report_permissive(shared: &Shared, snapshot: &Snapshot) {
    let before = shared.snapshot.load();
    let was_permissive = before
        .as_ref()
        .as_ref()
        .is_some_and(|before| before.workload.permissive);
    if shared.interception && snapshot.workload.permissive && !was_permissive {
        report("MeshConfig.permissiveNamespaces");
    }
}

fn report(setting: &'static str) {
    tracing::warn!(setting, "certificates.not_required");
}
