use std::time::Duration;

use rustls::pki_types::UnixTime;

/// How long before its issue a leaf becomes valid, so that verifiers with a slow clock accept it. All our issuers do this.
pub const LEAF_BACKDATE: Duration = Duration::from_secs(300);

/// When to renew a certificate: at half of its lifetime, plus or minus 5 % of the lifetime.
///
/// The lifetime starts at the issue, [`LEAF_BACKDATE`] after `not_before`: counted from `not_before`, a leaf of 30 seconds
/// would be past its half before it arrives. `random` is drawn once per certificate, from 0 to 1; other values are clamped.
/// It spreads the renewals of proxies that started together.
pub fn renewal_at(not_before: UnixTime, not_after: UnixTime, random: f64) -> UnixTime {
    let begin = Duration::from_secs(not_before.as_secs());
    let end = Duration::from_secs(not_after.as_secs());
    let issued = match begin.saturating_add(LEAF_BACKDATE) {
        issued if issued < end => issued,
        _ => begin,
    };
    let random = if random.is_finite() {
        random.clamp(0.0, 1.0)
    } else {
        0.5
    };
    let after = end.saturating_sub(issued).mul_f64(0.45 + 0.1 * random);
    UnixTime::since_unix_epoch(issued.saturating_add(after))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ISSUED: u64 = 1_000_300;

    fn renewal(not_before: u64, not_after: u64, random: f64) -> u64 {
        let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        renewal_at(at(not_before), at(not_after), random).as_secs()
    }

    #[test]
    fn renewal_is_between_45_and_55_percent_of_the_lifetime_since_issue() {
        let after = |random| renewal(ISSUED - 300, ISSUED + 86_400, random) - ISSUED;
        assert_eq!(after(0.0), 38_880);
        assert_eq!(after(0.5), 43_200);
        assert_eq!(after(1.0), 47_520);
    }

    #[test]
    fn a_random_number_out_of_range_is_clamped() {
        let after = |random| renewal(ISSUED - 300, ISSUED + 86_400, random) - ISSUED;
        assert_eq!(after(-7.0), after(0.0));
        assert_eq!(after(7.0), after(1.0));
        assert_eq!(after(f64::NAN), after(0.5));
    }

    #[test]
    fn a_leaf_of_thirty_seconds_is_not_renewed_before_it_was_issued() {
        let at = renewal(ISSUED - 300, ISSUED + 30, 0.5);
        assert_eq!(at, ISSUED + 15);
    }

    #[test]
    fn a_leaf_that_was_not_backdated_is_renewed_within_its_lifetime() {
        assert_eq!(renewal(ISSUED, ISSUED + 200, 0.5), ISSUED + 100);
    }

    #[test]
    fn a_leaf_that_ends_before_it_begins_is_due_at_once() {
        assert_eq!(renewal(ISSUED, ISSUED - 10, 0.5), ISSUED);
    }
}
