//! Back-off between retries.

use std::time::Duration;

/// Doubles with each retry, up to a limit, with jitter, so that clients that failed together do not retry together.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    ceiling: Duration,
}

impl Backoff {
    /// Waits from `first` to `most`.
    pub fn new(first: Duration, most: Duration) -> Self {
        Self {
            first,
            most,
            ceiling: first,
        }
    }

    /// The next wait: between half of the current ceiling and the ceiling.
    ///
    /// Not from zero: without a lower bound, the retries of a whole mesh would reach a restarted server at once.
    pub fn next_wait(&mut self) -> Duration {
        let wait = self.ceiling.div_f64(2.0) + self.ceiling.mul_f64(unit() / 2.0);
        self.ceiling = self.ceiling.saturating_mul(2).min(self.most);
        wait.min(self.most)
    }

    /// Starts over after a success.
    pub fn reset(&mut self) {
        self.ceiling = self.first;
    }
}

/// A random number from 0 to 1, uniformly distributed. For jitter, never for keys.
pub fn unit() -> f64 {
    let mut bytes = [0_u8; 4];
    match aws_lc_rs::rand::fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_ne_bytes(bytes)) / f64::from(u32::MAX),
        // Without entropy there is no spreading, and nothing else depends on it.
        Err(_) => 0.5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_limit_and_start_over_after_success() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        for ceiling in [100, 200, 400, 800, 1_000, 1_000] {
            let ceiling = Duration::from_millis(ceiling);
            let wait = backoff.next_wait();
            assert!(
                wait >= ceiling / 2 && wait <= ceiling,
                "{wait:?} of {ceiling:?}"
            );
        }
        backoff.reset();
        assert!(backoff.next_wait() <= Duration::from_millis(100));
    }
}
