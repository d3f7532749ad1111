//! Puts an identity in force, withdraws it when it expires, and reports one that is not valid yet.

use std::sync::Arc;

use merlon_certs::{MeshTls, X509Svid};
use rustls_pki_types::UnixTime;

use crate::{
    state::{readiness::Unready, shared::Shared},
    telemetry::metrics::Metrics,
};

/// Puts an identity in force if it has changed and has not expired at `now`. New handshakes use it; open connections stay.
pub(crate) fn publish(shared: &Shared, metrics: &Metrics, tls: MeshTls, now: UnixTime) {
    if has_expired(tls.svid(), now) {
        return;
    }
    let before = shared.identity.load_full();
    let same = |old: &Arc<MeshTls>| {
        old.svid().serial == tls.svid().serial
            && old.roots().certificates() == tls.roots().certificates()
    };
    if before.as_ref().as_ref().is_some_and(same) {
        return;
    }
    let svid = tls.svid();
    tracing::info!(
        identity = %svid.id,
        serial = svid.serial,
        not_after = svid.not_after.as_secs(),
        "identity.accepted"
    );
    let rotated = before
        .as_ref()
        .as_ref()
        .is_some_and(|old| old.svid().serial != svid.serial);
    if rotated {
        metrics.rotations.inc();
    }
    let ends = i64::try_from(svid.not_after.as_secs()).unwrap_or(i64::MAX);
    metrics.certificate_expiration.set(ends);
    shared.identity.publish(Some(Arc::new(tls)));
    check_validity(shared, now);
    shared.readiness.remove_reason(Unready::NoIdentity);
    shared.readiness.remove_reason(Unready::TlsExpired);
}

/// Compares the identity in force with the time. One that has expired is withdrawn: no connection is accepted or opened with
/// an expired certificate. One that is not valid yet, because the clock was set back, makes the proxy unready. It stays in
/// force, because peers verify it by their own clocks, which may be right.
pub(crate) fn check_validity(shared: &Shared, now: UnixTime) {
    let current = shared.identity.load_full();
    let Some(tls) = current.as_ref() else {
        shared.readiness.remove_reason(Unready::TlsNotYetValid);
        return;
    };
    if is_early(tls.svid(), now) {
        let message =
            "the certificate is not valid yet: the clock of this machine was set back, or is wrong";
        let code = Unready::TlsNotYetValid;
        if shared
            .readiness
            .add_part_reason(code, "", message.to_owned())
        {
            tracing::error!(
                identity = %tls.svid().id,
                serial = tls.svid().serial,
                not_before = tls.svid().not_before.as_secs(),
                now = now.as_secs(),
                "identity.not_yet_valid"
            );
        }
        return;
    }
    shared.readiness.remove_reason(Unready::TlsNotYetValid);
    if has_expired(tls.svid(), now) {
        tracing::error!(identity = %tls.svid().id, serial = tls.svid().serial, "identity.expired");
        shared.identity.publish(None);
        shared.readiness.add_reason(
            Unready::TlsExpired,
            "the certificate has expired and was not renewed",
        );
    }
}

/// Whether a certificate is not used any more. In its last second, a verifier still accepts it (RFC 5280 §4.1.2.5), so what
/// [`check_validity`] withdraws could be read again from a file.
fn has_expired(svid: &X509Svid, now: UnixTime) -> bool {
    svid.not_after.as_secs() <= now.as_secs()
}

/// Whether a verifier with this clock refuses a certificate because it is not valid yet.
pub(super) fn is_early(svid: &X509Svid, now: UnixTime) -> bool {
    now.as_secs() < svid.not_before.as_secs()
}
