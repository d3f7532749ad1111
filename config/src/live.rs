//! A value that changes while the program runs.

use std::{fmt, sync::Arc};

use arc_swap::{ArcSwap, Guard};
use tokio::sync::watch;

/// A value that is replaced as a whole. Reads take no lock, and tasks can wait for changes.
pub struct Live<T> {
    value: Arc<ArcSwap<T>>,
    changed: watch::Sender<u64>,
}

impl<T> Live<T> {
    /// Starts with `value`.
    pub fn new(value: T) -> Self {
        Self {
            value: Arc::new(ArcSwap::from_pointee(value)),
            changed: watch::Sender::new(0),
        }
    }

    /// The current value, for use within one synchronous step.
    pub fn load(&self) -> Guard<Arc<T>> {
        self.value.load()
    }

    /// The current value, to keep across awaits. A request loads it once.
    pub fn load_full(&self) -> Arc<T> {
        self.value.load_full()
    }

    /// Replaces the value and wakes all watchers.
    pub fn publish(&self, value: T) {
        self.publish_arc(Arc::new(value));
    }

    /// Like [`Live::publish`], for a value that is already shared.
    pub fn publish_arc(&self, value: Arc<T>) {
        self.value.store(value);
        self.changed.send_modify(|generation| *generation += 1);
    }

    /// A receiver that is notified when a value is published.
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
