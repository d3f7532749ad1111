//! How often unknown keys may cause a fetch.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// The same key is looked for at most once in this time, found or not.
pub(super) const SAME: Duration = Duration::from_secs(30);
/// Keys of whatever names cause at most one fetch in this time. Short, because whoever invents names uses it up, and
/// for so long a key that is really new may be refused.
pub(super) const ANY: Duration = Duration::from_secs(5);

/// What was looked for lately. With one question in [`ANY`] it never grows beyond [`SAME`] divided by that.
#[derive(Debug, Default)]
pub(super) struct Budget {
    asked: VecDeque<(String, Instant)>,
}

impl Budget {
    /// Whether this key may be looked for now; then it is taken to have been.
    pub(super) fn take(&mut self, kid: &str, now: Instant) -> bool {
        self.asked
            .retain(|(_, at)| now.saturating_duration_since(*at) < SAME);
        let busy = self
            .asked
            .back()
            .is_some_and(|(_, at)| now.saturating_duration_since(*at) < ANY);
        if busy || self.asked.iter().any(|(known, _)| known == kid) {
            return false;
        }
        self.asked.push_back((kid.to_owned(), now));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invented_names_delay_a_new_key_by_seconds_and_one_name_costs_one_fetch() {
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
        // Somebody asks for another name as often as he can, for an hour.
        let fetches = (31..3_631).filter(|second| budget.take(&format!("{second}"), at(*second)));
        assert_eq!(fetches.count(), 720);
        assert!(budget.asked.len() <= 6);
    }
}
