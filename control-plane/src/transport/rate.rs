//! Rate limits per peer: a token bucket for each, with a bounded number of buckets.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Maximum number of peers that are tracked separately. Beyond it, full buckets are evicted.
const MAX_PEERS: usize = 10_000;

/// A token bucket for each key: a burst, refilled over time.
#[derive(Debug, Clone)]
pub(crate) struct Rate<K> {
    burst: f64,
    per_second: f64,
    buckets: Arc<Mutex<HashMap<K, Bucket>>>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl<K: Hash + Eq> Rate<K> {
    pub(crate) fn new(burst: u32, per_second: u32) -> Self {
        Self {
            burst: burst.into(),
            per_second: per_second.into(),
            buckets: Arc::default(),
        }
    }

    /// Takes a token.
    ///
    /// # Errors
    /// How long until the next token.
    pub(crate) fn take(&self, key: K, now: Instant) -> Result<(), Duration> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let filled = |bucket: &Bucket| {
            let passed = now.saturating_duration_since(bucket.at).as_secs_f64();
            (bucket.left + passed * self.per_second).min(self.burst)
        };
        if buckets.len() >= MAX_PEERS {
            buckets.retain(|_, bucket| filled(bucket) < self.burst);
        }
        // So many peers over their limit indicate an attack: new peers wait for a moment.
        if buckets.len() >= MAX_PEERS && !buckets.contains_key(&key) {
            return Err(Duration::from_secs(1));
        }
        let full = Bucket {
            left: self.burst,
            at: now,
        };
        let bucket = buckets.entry(key).or_insert(full);
        let left = filled(bucket);
        *bucket = Bucket { left, at: now };
        if left < 1.0 {
            // Without a refill it is infinite.
            let wait = Duration::try_from_secs_f64((1.0 - left) / self.per_second);
            return Err(wait.unwrap_or(Duration::MAX));
        }
        bucket.left = left - 1.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_over_its_limit_waits_and_others_do_not() {
        let rate = Rate::new(2, 4);
        let now = Instant::now();
        assert_eq!(rate.take("a", now), Ok(()));
        assert_eq!(rate.take("a", now), Ok(()));
        assert_eq!(rate.take("a", now), Err(Duration::from_millis(250)));
        assert_eq!(rate.take("b", now), Ok(()));
        assert_eq!(rate.take("a", now + Duration::from_millis(250)), Ok(()));
    }

    #[test]
    fn the_number_of_tracked_peers_is_bounded() {
        let rate = Rate::new(1, 1);
        let now = Instant::now();
        for peer in 0..MAX_PEERS {
            assert_eq!(rate.take(peer, now), Ok(()));
        }
        assert!(rate.take(MAX_PEERS, now).is_err());
        assert_eq!(rate.take(MAX_PEERS, now + Duration::from_secs(2)), Ok(()));
    }
}
