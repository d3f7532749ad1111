//! One namespace's secrets: read, and read again. Each namespace has a turn of its own, so that what Vault answers slowly
//! or not at all delays those who share its namespace, and nobody else.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use merlon_compile::Granted;
use tokio::{
    sync::{Semaphore, mpsc, watch},
    time::timeout,
};

use crate::random;

/// How often each secret is read. Vault has no events that one could wait for on every server.
const EVERY: Duration = Duration::from_secs(5);
/// For one reading.
const PATIENCE: Duration = Duration::from_secs(5);
/// Readings of one namespace at the same time.
const AT_ONCE: usize = 4;
/// Readings of all of them.
const TOGETHER: usize = 128;

/// What was read, or why it was not.
pub(super) type Found<T> = (Granted, Result<T, String>);

/// What all turns share.
#[derive(Debug)]
pub(super) struct Common<T, R> {
    pub(super) read: R,
    pub(super) found: mpsc::Sender<Found<T>>,
    places: Arc<Semaphore>,
}

impl<T, R: Clone> Clone for Common<T, R> {
    fn clone(&self) -> Self {
        Self {
            read: self.read.clone(),
            found: self.found.clone(),
            places: Arc::clone(&self.places),
        }
    }
}

impl<T, R> Common<T, R> {
    pub(super) fn new(read: R, found: mpsc::Sender<Found<T>>) -> Self {
        let places = Arc::new(Semaphore::new(TOGETHER));
        Self {
            read,
            found,
            places,
        }
    }

    /// Reads `wanted` until nobody wants to know any more. What is new in it, and what `nudged` tells, is not waited for.
    pub(super) async fn turn<F>(
        self,
        mut wanted: watch::Receiver<BTreeSet<Granted>>,
        mut nudged: watch::Receiver<u64>,
    ) where
        R: Fn(Granted) -> F,
        F: Future<Output = Result<T, String>>,
    {
        // Those that gave no answer come after the others, lest they take all places first.
        let mut silent = BTreeSet::new();
        loop {
            let now = wanted.borrow_and_update().clone();
            nudged.mark_unchanged();
            silent.retain(|granted| now.contains(granted));
            let pause = EVERY.mul_f64(0.8 + 0.4 * random::unit());
            let round = async {
                self.round(&now, &mut silent).await;
                tokio::time::sleep(pause).await;
            };
            tokio::select! {
                () = round => {}
                changed = wanted.changed() => if changed.is_err() { return },
                Ok(()) = nudged.changed() => {}
            }
        }
    }

    async fn round<F>(&self, wanted: &BTreeSet<Granted>, silent: &mut BTreeSet<Granted>)
    where
        R: Fn(Granted) -> F,
        F: Future<Output = Result<T, String>>,
    {
        let all = wanted.iter().cloned();
        let (last, first): (Vec<_>, Vec<_>) = all.partition(|granted| silent.contains(granted));
        let readings = first
            .into_iter()
            .chain(last)
            .map(|granted: Granted| async move {
                let _place = self.places.acquire().await;
                let read = timeout(PATIENCE, (self.read)(granted.clone())).await;
                (granted, read)
            });
        let mut readings = Box::pin(stream::iter(readings).buffer_unordered(AT_ONCE));
        while let Some((granted, read)) = readings.next().await {
            let read = match read {
                Ok(read) => {
                    silent.remove(&granted);
                    read
                }
                Err(_) => {
                    silent.insert(granted.clone());
                    Err(format!("no answer within {} seconds", PATIENCE.as_secs()))
                }
            };
            if self.found.send((granted, read)).await.is_err() {
                return;
            }
        }
    }
}
