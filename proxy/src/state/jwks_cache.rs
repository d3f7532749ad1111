//! The keys of token issuers.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use merlon_policy::authn::jwks::KeySet;
use tokio::{
    sync::{mpsc, oneshot},
    time,
};

/// Key sets by issuer URL. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct JwksCache(Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    sets: ArcSwap<HashMap<String, Arc<KeySet>>>,
    generation: AtomicU64,
    refetches: mpsc::Sender<Refetch>,
}

/// A worker met a key that the issuer's set does not have.
#[derive(Debug)]
pub(crate) struct Refetch {
    pub(crate) issuer: String,
    pub(crate) question: Question,
}

#[derive(Debug)]
pub(crate) struct Question {
    /// Empty where the issuer has no keys at all.
    pub(crate) kid: String,
    pub(crate) done: oneshot::Sender<()>,
}

/// How long a request waits for a refetch: a fetch takes 5 seconds at most.
pub(crate) const PATIENCE: Duration = Duration::from_secs(6);

/// Refetches that may wait at once; further requests are decided by the keys at hand.
pub(crate) const WAITING: usize = 256;

impl JwksCache {
    /// An empty cache, and what its [`Fetcher`] needs.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Refetch>) {
        let (refetches, asked) = mpsc::channel(WAITING);
        let inner = Inner {
            sets: ArcSwap::default(),
            generation: AtomicU64::new(0),
            refetches,
        };
        (Self(Arc::new(inner)), asked)
    }

    /// The keys of the issuer with this URL; `None`: never loaded, or not confirmed for 24 hours.
    pub fn get(&self, issuer: &str) -> Option<Arc<KeySet>> {
        self.0.sets.load().get(issuer).cloned()
    }

    /// Changes whenever any issuer's keys change: a verified token must not be remembered across generations,
    /// or a removed key would go on opening doors.
    pub fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Acquire)
    }

    /// Asks for an issuer's keys anew, for a `kid` that is not among them, and waits for the answer, at most
    /// 6 seconds. The same `kid` causes one fetch in 30 seconds at most, and all of an issuer's together one in 5;
    /// else it returns at once. Afterwards look with [`JwksCache::get`] again.
    pub async fn refetch(&self, issuer: &str, kid: &str) {
        let (done, answered) = oneshot::channel();
        let (issuer, kid) = (issuer.to_owned(), kid.to_owned());
        let question = Question { kid, done };
        if self
            .0
            .refetches
            .try_send(Refetch { issuer, question })
            .is_ok()
        {
            // Whether it was answered, dropped or too late: the keys at hand decide.
            let _ = time::timeout(PATIENCE, answered).await;
        }
    }

    pub(crate) fn publish(&self, issuer: &str, keys: Option<Arc<KeySet>>) {
        let mut sets = self.0.sets.load().as_ref().clone();
        match keys {
            Some(keys) => sets.insert(issuer.to_owned(), keys),
            None => sets.remove(issuer),
        };
        self.0.sets.store(Arc::new(sets));
        // After the keys: who sees the new generation sees the new keys.
        self.0.generation.fetch_add(1, Ordering::Release);
    }
}
