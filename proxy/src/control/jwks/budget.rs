//! Limits how often unknown keys cause a fetch.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

use crate::limits::Limits;

/// The recent fetches. With one fetch per `any` it has at most `same / any` entries.
#[derive(Debug)]
pub(super) struct Budget {
    same: Duration,
    any: Duration,
    fetched: VecDeque<(String, Instant)>,
}

impl Budget {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            same: limits.jwks_same_key,
            any: limits.jwks_any_key,
            fetched: VecDeque::new(),
        }
    }

    /// Whether `kid` may cause a fetch now; if so, the fetch is counted.
    pub(super) fn take(&mut self, kid: &str, now: Instant) -> bool {
        let (same, any) = (self.same, self.any);
        self.fetched
            .retain(|(_, at)| now.saturating_duration_since(*at) < same);
        let busy = self
            .fetched
            .back()
            .is_some_and(|(_, at)| now.saturating_duration_since(*at) < any);
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
        let mut budget = Budget::new(&Limits::default());
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
