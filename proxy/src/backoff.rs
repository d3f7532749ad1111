//! How long to wait before trying again.

use std::time::Duration;

/// Doubles from try to try, up to a limit, with full jitter: what failed together does not come back together.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    first: Duration,
    most: Duration,
    ceiling: Duration,
}

impl Backoff {
    /// From `first` to `most`.
    pub(crate) fn new(first: Duration, most: Duration) -> Self {
        Self {
            first,
            most,
            ceiling: first,
        }
    }

    /// The next wait: between half of the present ceiling and all of it.
    ///
    /// Not from zero: without a lower end a whole mesh's retries would reach a server that just came up at once.
    pub(crate) fn next(&mut self) -> Duration {
        let wait = self.ceiling.div_f64(2.0) + self.ceiling.mul_f64(random() / 2.0);
        self.ceiling = self.ceiling.saturating_mul(2).min(self.most);
        wait.min(self.most)
    }

    /// It worked: the next failure begins anew.
    pub(crate) fn reset(&mut self) {
        self.ceiling = self.first;
    }
}

/// Evenly from 0 to 1; to spread load, never for keys.
pub(crate) fn random() -> f64 {
    let mut bytes = [0_u8; 4];
    // Without entropy there is no spreading, and nothing else depends on it.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    f64::from(u32::from_ne_bytes(bytes)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_limit_and_begin_anew_after_success() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        for ceiling in [100, 200, 400, 800, 1_000, 1_000] {
            let ceiling = Duration::from_millis(ceiling);
            let wait = backoff.next();
            assert!(
                wait >= ceiling / 2 && wait <= ceiling,
                "{wait:?} of {ceiling:?}"
            );
        }
        backoff.reset();
        assert!(backoff.next() <= Duration::from_millis(100));
    }
}
