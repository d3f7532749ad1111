//! How often one peer may ask for a certificate: a bucket each, few enough to remember.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// The most peers that are told apart. When there are more, those whose bucket is full again are forgotten.
const MOST: usize = 10_000;

/// So many at once, and so many more over time.
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

    /// Takes one.
    ///
    /// # Errors
    /// How long to wait for the next.
    pub(crate) fn take(&self, key: K, now: Instant) -> Result<(), Duration> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let filled = |bucket: &Bucket| {
            let passed = now.saturating_duration_since(bucket.at).as_secs_f64();
            (bucket.left + passed * self.per_second).min(self.burst)
        };
        if buckets.len() >= MOST {
            buckets.retain(|_, bucket| filled(bucket) < self.burst);
        }
        // With as many peers in debt as this, somebody is at it; nobody new is let in for a moment.
        if buckets.len() >= MOST && !buckets.contains_key(&key) {
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
            return Err(Duration::from_secs_f64((1.0 - left) / self.per_second));
        }
        bucket.left = left - 1.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_asks_too_often_waits_and_others_do_not() {
        let rate = Rate::new(2, 4);
        let now = Instant::now();
        assert_eq!(rate.take("a", now), Ok(()));
        assert_eq!(rate.take("a", now), Ok(()));
        assert_eq!(rate.take("a", now), Err(Duration::from_millis(250)));
        assert_eq!(rate.take("b", now), Ok(()));
        assert_eq!(rate.take("a", now + Duration::from_millis(250)), Ok(()));
    }

    #[test]
    fn as_many_peers_as_can_be_remembered_are_remembered_and_no_more() {
        let rate = Rate::new(1, 1);
        let now = Instant::now();
        for peer in 0..MOST {
            assert_eq!(rate.take(peer, now), Ok(()));
        }
        assert!(rate.take(MOST, now).is_err());
        assert_eq!(rate.take(MOST, now + Duration::from_secs(2)), Ok(()));
    }
}
