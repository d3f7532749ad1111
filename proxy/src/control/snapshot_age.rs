//! Time since the source last confirmed the state in force.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicI64, Ordering::Relaxed},
};

use merlon_config::clock;

/// Set by the source of the state, and read where its age is reported. Clones share their content.
#[derive(Debug, Clone, Default)]
pub(crate) struct SnapshotAge(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// The state is the newest one, and its source is reachable.
    current: AtomicBool,
    /// Seconds since 1970; 0: never.
    confirmed: AtomicI64,
}

impl SnapshotAge {
    /// The state in force is the newest one until [`SnapshotAge::stale`].
    pub(crate) fn confirmed(&self) {
        self.0.current.store(true, Relaxed);
        self.0.confirmed.store(clock::now().as_second(), Relaxed);
    }

    /// From now on the state ages.
    pub(crate) fn stale(&self) {
        if self.0.current.swap(false, Relaxed) {
            self.0.confirmed.store(clock::now().as_second(), Relaxed);
        }
    }

    /// Sets when a state from disk was confirmed.
    pub(crate) fn restore(&self, confirmed: i64) {
        self.0.confirmed.store(confirmed, Relaxed);
    }

    /// When the state was last confirmed, in seconds since 1970; 0: never.
    pub(crate) fn confirmed_at(&self) -> i64 {
        if self.0.current.load(Relaxed) {
            clock::now().as_second()
        } else {
            self.0.confirmed.load(Relaxed)
        }
    }

    /// Age of the state in seconds; 0 while it is current, and when there is none.
    pub(crate) fn age(&self) -> u64 {
        let confirmed = self.confirmed_at();
        if confirmed == 0 {
            return 0;
        }
        // If the clock was set back, the age is 0, not negative.
        u64::try_from(clock::now().as_second().saturating_sub(confirmed)).unwrap_or(0)
    }
}
