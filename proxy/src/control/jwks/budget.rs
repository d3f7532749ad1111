//! Limits how often unknown keys cause a fetch.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// One `kid` causes at most one fetch in this time, found or not.
pub(super) const SAME: Duration = Duration::from_secs(30);
/// All `kid`s together cause at most one fetch in this time. It is short, since a client can use it up with invented
/// names, and a key that is really new may be refused for this long.
pub(super) const ANY: Duration = Duration::from_secs(5);

/// The recent fetches. With one fetch per [`ANY`] it has at most `SAME / ANY` entries.
#[derive(Debug, Default)]
pub(super) struct Budget {
    fetched: VecDeque<(String, Instant)>,
}

impl Budget {
    /// Whether `kid` may cause a fetch now; if so, the fetch is counted.
    pub(super) fn take(&mut self, kid: &str, now: Instant) -> bool {
        self.fetched
            .retain(|(_, at)| now.saturating_duration_since(*at) < SAME);
        let busy = self
            .fetched
            .back()
            .is_some_and(|(_, at)| now.saturating_duration_since(*at) < ANY);
        if busy || self.fetched.iter().any(|(known, _)| known == kid) {
            return false;
        }
        self.fetched.push_back((kid.to_owned(), now));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invented_names_delay_a_new_key_by_seconds_and_one_name_causes_one_fetch() {
        let mut budget = Budget::default();
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        assert!(budget.take("stale", at(0)));
        assert!(!budget.take("new", at(4)), "one fetch in 5 s");
        assert!(budget.take("new", at(5)));
        for second in 6..30 {
            assert!(!budget.take("stale", at(second)), "{second}");
        }
        assert!(budget.take("stale", at(30)));
        // A client sends new names as fast as possible, for an hour.
        let fetches = (31..3_631).filter(|second| budget.take(&format!("{second}"), at(*second)));
        assert_eq!(fetches.count(), 720);
        assert!(budget.fetched.len() <= 6);
    }
}
