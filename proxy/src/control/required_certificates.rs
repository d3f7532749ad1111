//! Reports the two settings with which a peer needs no certificate.

use crate::state::snapshot::Snapshot;

/// Reports that this process has no identity, so that all its connections are plain text.
pub(super) fn report_standalone() {
    report("--standalone without --certificate");
}

/// Reports a snapshot that permits plain text, unless the one before did.
pub(super) fn report_permissive(before: Option<&Snapshot>, snapshot: &Snapshot) {
    let was_permissive = before.is_some_and(|before| before.workload.permissive);
    if snapshot.workload.permissive && !was_permissive {
        report("MeshConfig.permissiveNamespaces");
    }
}

fn report(setting: &'static str) {
    tracing::warn!(setting, "certificates.not_required");
}
