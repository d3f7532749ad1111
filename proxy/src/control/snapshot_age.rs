//! How long ago the state in force was last confirmed by whoever makes it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicI64, Ordering::Relaxed},
};

use jiff::Timestamp;

/// Shared by who follows the state and who reports its age. Clones are one.
#[derive(Debug, Clone, Default)]
pub(crate) struct SnapshotAge(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Nothing newer is known to exist, and whoever would know of it can be heard.
    current: AtomicBool,
    /// Seconds since 1970; 0: never.
    confirmed: AtomicI64,
}

impl SnapshotAge {
    /// The state in force is the newest, and stays so until [`SnapshotAge::stale`].
    pub(crate) fn confirmed(&self) {
        self.0.current.store(true, Relaxed);
        self.0
            .confirmed
            .store(Timestamp::now().as_second(), Relaxed);
    }

    /// From now on the state ages.
    pub(crate) fn stale(&self) {
        if self.0.current.swap(false, Relaxed) {
            self.0
                .confirmed
                .store(Timestamp::now().as_second(), Relaxed);
        }
    }

    /// A state read from disk was confirmed then.
    pub(crate) fn restore(&self, confirmed: i64) {
        self.0.confirmed.store(confirmed, Relaxed);
    }

    /// When the state was last confirmed, in seconds since 1970; 0: never.
    pub(crate) fn confirmed_at(&self) -> i64 {
        if self.0.current.load(Relaxed) {
            Timestamp::now().as_second()
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
        // A clock that was set back makes the state young, not negative.
        u64::try_from(Timestamp::now().as_second().saturating_sub(confirmed)).unwrap_or(0)
    }
}
