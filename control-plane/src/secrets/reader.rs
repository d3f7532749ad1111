//! One namespace's secrets: read, and read again. Each namespace has a turn of its own, so that what Vault answers slowly
//! or not at all delays those who share its namespace, and nobody else.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use merlon_compile::Granted;
use tokio::{
    sync::{Semaphore, mpsc, watch},
    time::timeout,
};

use merlon_net::backoff;

/// How often each secret is read. Vault has no events that one could wait for on every server.
const EVERY: Duration = Duration::from_secs(5);
/// For one reading.
const PATIENCE: Duration = Duration::from_secs(5);
/// Readings of one namespace at the same time.
const AT_ONCE: usize = 4;
/// Readings of all of them, and of those that gave no answer the last time: these take no place of the others.
const TOGETHER: usize = 128;
const OF_SILENT: usize = 64;

/// What was read, or why it was not.
pub(super) type Found<T> = (Granted, Result<T, String>);

/// What all turns share.
#[derive(Debug)]
pub(super) struct NamespaceReader<T, R> {
    pub(super) read: R,
    pub(super) found: mpsc::Sender<Found<T>>,
    places: Arc<Semaphore>,
    of_silent: Arc<Semaphore>,
}

impl<T, R: Clone> Clone for NamespaceReader<T, R> {
    fn clone(&self) -> Self {
        Self {
            read: self.read.clone(),
            found: self.found.clone(),
            places: Arc::clone(&self.places),
            of_silent: Arc::clone(&self.of_silent),
        }
    }
}

impl<T, R> NamespaceReader<T, R> {
    pub(super) fn new(read: R, found: mpsc::Sender<Found<T>>) -> Self {
        Self {
            read,
            found,
            places: Arc::new(Semaphore::new(TOGETHER)),
            of_silent: Arc::new(Semaphore::new(OF_SILENT)),
        }
    }

    /// Reads `wanted` until nobody wants to know any more. What is new in it, and what `nudged` tells, is not waited for.
    pub(super) async fn run<F, N>(
        self,
        mut wanted: watch::Receiver<BTreeSet<Granted>>,
        mut nudged: watch::Receiver<N>,
    ) where
        R: Fn(Granted) -> F,
        F: Future<Output = Result<T, String>>,
    {
        let silent = Silent::default();
        loop {
            let now = wanted.borrow_and_update().clone();
            nudged.mark_unchanged();
            silent.keep(&now);
            let pause = EVERY.mul_f64(0.8 + 0.4 * backoff::unit());
            let round = async {
                self.round(&now, &silent).await;
                tokio::time::sleep(pause).await;
            };
            tokio::select! {
                () = round => {}
                changed = wanted.changed() => if changed.is_err() { return },
                Ok(()) = nudged.changed() => {}
            }
        }
    }

    async fn round<F>(&self, wanted: &BTreeSet<Granted>, silent: &Silent)
    where
        R: Fn(Granted) -> F,
        F: Future<Output = Result<T, String>>,
    {
        let all = wanted.iter().cloned();
        let (last, first): (Vec<_>, Vec<_>) = all.partition(|granted| silent.has(granted));
        let first = first.into_iter().map(|granted| (granted, false));
        let last = last.into_iter().map(|granted| (granted, true));
        let readings = first
            .chain(last)
            .map(|(granted, was_silent): (Granted, bool)| async move {
                let places = match was_silent {
                    true => &self.of_silent,
                    false => &self.places,
                };
                let _place = places.acquire().await;
                // Until it answers: a round that is broken off does not wait for it again before the others.
                silent.add(&granted);
                let read = timeout(PATIENCE, (self.read)(granted.clone())).await;
                let read = match read {
                    Ok(read) => {
                        silent.remove(&granted);
                        read
                    }
                    Err(_) => Err(format!("no answer within {} seconds", PATIENCE.as_secs())),
                };
                (granted, read)
            });
        let mut readings = Box::pin(stream::iter(readings).buffer_unordered(AT_ONCE));
        while let Some(found) = readings.next().await {
            if self.found.send(found).await.is_err() {
                return;
            }
        }
    }
}

/// Those of a namespace that gave no answer. They come after the others, lest they take all places first.
#[derive(Debug, Default)]
struct Silent(Mutex<BTreeSet<Granted>>);

impl Silent {
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
