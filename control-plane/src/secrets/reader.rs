//! Reads the secrets of one namespace periodically. Each namespace has its own reader, so that paths that Vault answers slowly
//! or not at all only delay their own namespace.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::{StreamExt as _, stream};
use merlon_compile::Granted;
use tokio::{
    sync::{Semaphore, mpsc, watch},
    time::timeout,
};

use merlon_net::backoff;

use crate::limits::SecretLimits;

/// A grant with its value, or the error.
pub(super) type Found<T> = (Granted, Result<T, String>);

/// What the readers of all namespaces share.
#[derive(Debug)]
pub(super) struct NamespaceReader<T, R> {
    pub(super) read: R,
    pub(super) found: mpsc::Sender<Found<T>>,
    limits: SecretLimits,
    places: Arc<Semaphore>,
    places_of_timed_out: Arc<Semaphore>,
}

impl<T, R: Clone> Clone for NamespaceReader<T, R> {
    fn clone(&self) -> Self {
        Self {
            read: self.read.clone(),
            found: self.found.clone(),
            limits: self.limits,
            places: Arc::clone(&self.places),
            places_of_timed_out: Arc::clone(&self.places_of_timed_out),
        }
    }
}

impl<T, R> NamespaceReader<T, R> {
    pub(super) fn new(read: R, found: mpsc::Sender<Found<T>>, limits: SecretLimits) -> Self {
        Self {
            read,
            found,
            limits,
            places: Arc::new(Semaphore::new(limits.total_reads.max(1))),
            places_of_timed_out: Arc::new(Semaphore::new(limits.timed_out_reads.max(1))),
        }
    }

    /// Reads `wanted` until its sender is dropped. A change of `wanted` or `issuer_changed` starts a new round at once.
    pub(super) async fn run<F, N>(
        self,
        mut wanted: watch::Receiver<BTreeSet<Granted>>,
        mut issuer_changed: watch::Receiver<N>,
    ) where
        R: Fn(Granted) -> F,
        F: Future<Output = Result<T, String>>,
    {
        let timed_out = TimedOut::default();
        loop {
            let now = wanted.borrow_and_update().clone();
            issuer_changed.mark_unchanged();
            timed_out.keep(&now);
            let pause = self.limits.interval.mul_f64(0.8 + 0.4 * backoff::unit());
            let round = async {
                self.round(&now, &timed_out).await;
                tokio::time::sleep(pause).await;
            };
            tokio::select! {
                () = round => {}
                changed = wanted.changed() => if changed.is_err() { return },
                Ok(()) = issuer_changed.changed() => {}
            }
        }
    }

    async fn round<F>(&self, wanted: &BTreeSet<Granted>, timed_out: &TimedOut)
    where
        R: Fn(Granted) -> F,
        F: Future<Output = Result<T, String>>,
    {
        let time_out = self.limits.timeout;
        let all = wanted.iter().cloned();
        let (last, first): (Vec<_>, Vec<_>) = all.partition(|granted| timed_out.has(granted));
        let first = first.into_iter().map(|granted| (granted, false));
        let last = last.into_iter().map(|granted| (granted, true));
        let readings =
            first
                .chain(last)
                .map(|(granted, had_timed_out): (Granted, bool)| async move {
                    let places = match had_timed_out {
                        true => &self.places_of_timed_out,
                        false => &self.places,
                    };
                    let _place = places.acquire().await;
                    // Removed when it answers. If this round is cancelled, the next one reads it last.
                    timed_out.add(&granted);
                    let read = timeout(time_out, (self.read)(granted.clone())).await;
                    let read = match read {
                        Ok(read) => {
                            timed_out.remove(&granted);
                            read
                        }
                        Err(_) => Err(format!(
                            "no answer within {} seconds",
                            time_out.as_secs_f64()
                        )),
                    };
                    (granted, read)
                });
        let mut readings =
            Box::pin(stream::iter(readings).buffer_unordered(self.limits.reads.max(1)));
        while let Some(found) = readings.next().await {
            if self.found.send(found).await.is_err() {
                return;
            }
        }
    }
}

/// Paths that timed out. They are read last, so that they do not take the places of the others.
#[derive(Debug, Default)]
struct TimedOut(Mutex<BTreeSet<Granted>>);

impl TimedOut {
    fn has(&self, granted: &Granted) -> bool {
        self.lock().contains(granted)
    }

    fn add(&self, granted: &Granted) {
        self.lock().insert(granted.clone());
    }

    fn remove(&self, granted: &Granted) {
        self.lock().remove(granted);
    }

    fn keep(&self, wanted: &BTreeSet<Granted>) {
        self.lock().retain(|granted| wanted.contains(granted));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<Granted>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
