use std::time::Duration;

use rustls_pki_types::UnixTime;

/// When to renew a certificate: half way through its life, 5 % of the life earlier or later.
///
/// `random` is drawn once per certificate, from 0 to 1; what lies outside is taken to the nearer end. Proxies that were
/// started together thus do not renew together.
pub fn renewal_at(not_before: UnixTime, not_after: UnixTime, random: f64) -> UnixTime {
    let life = Duration::from_secs(not_after.as_secs().saturating_sub(not_before.as_secs()));
    let random = if random.is_finite() {
        random.clamp(0.0, 1.0)
    } else {
        0.5
    };
    let after = life.mul_f64(0.45 + 0.1 * random);
    UnixTime::since_unix_epoch(Duration::from_secs(not_before.as_secs()).saturating_add(after))
}
