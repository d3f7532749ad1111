//! A value that changes while the program runs.

use std::{fmt, sync::Arc};

use arc_swap::{ArcSwap, Guard};
use tokio::sync::watch;

/// A value that is swapped whole: read without a lock, awaited when it changes.
pub struct Live<T> {
    value: Arc<ArcSwap<T>>,
    changed: watch::Sender<u64>,
}

impl<T> Live<T> {
    /// Begins with `value`.
    pub fn new(value: T) -> Self {
        Self {
            value: Arc::new(ArcSwap::from_pointee(value)),
            changed: watch::Sender::new(0),
        }
    }

    /// The value of this moment, for use within one synchronous step.
    pub fn load(&self) -> Guard<Arc<T>> {
        self.value.load()
    }

    /// The value of this moment, to keep across awaits: a request takes it once.
    pub fn load_full(&self) -> Arc<T> {
        self.value.load_full()
    }

    /// Puts `value` in place of the old one and wakes who watches.
    pub fn publish(&self, value: T) {
        self.publish_arc(Arc::new(value));
    }

    /// As [`Live::publish`], for a value that others hold already.
    pub fn publish_arc(&self, value: Arc<T>) {
        self.value.store(value);
        self.changed.send_modify(|generation| *generation += 1);
    }

    /// Resolves whenever a value was published after the last look.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

impl<T> Clone for Live<T> {
    fn clone(&self) -> Self {
        Self {
            value: Arc::clone(&self.value),
            changed: self.changed.clone(),
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for Live<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Live").field(&self.value.load()).finish()
    }
}
