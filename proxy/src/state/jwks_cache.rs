//! Keys of token issuers.

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

use crate::limits::Limits;

/// Key sets by issuer URL. Cheap to clone; clones share their content.
#[derive(Debug, Clone)]
pub struct JwksCache(Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    sets: ArcSwap<HashMap<String, Arc<KeySet>>>,
    generation: AtomicU64,
    refetches: mpsc::Sender<Refetch>,
    wait: Duration,
}

/// A request to fetch an issuer's keys, because a token names a key that is not in the set.
#[derive(Debug)]
pub(crate) struct Refetch {
    pub(crate) issuer: String,
    pub(crate) question: Question,
}

#[derive(Debug)]
pub(crate) struct Question {
    /// Empty if the issuer has no keys at all.
    pub(crate) kid: String,
    pub(crate) done: oneshot::Sender<()>,
}

/// Maximum number of queued refetches; further requests are decided with the current keys.
pub(crate) const QUEUE: usize = 256;

impl JwksCache {
    /// An empty cache, and the queue of refetches for the fetcher.
    pub(crate) fn new(limits: &Limits) -> (Self, mpsc::Receiver<Refetch>) {
        let (refetches, asked) = mpsc::channel(QUEUE);
        let inner = Inner {
            sets: ArcSwap::default(),
            generation: AtomicU64::new(0),
            refetches,
            wait: limits.jwks_wait,
        };
        (Self(Arc::new(inner)), asked)
    }

    /// The keys of the issuer with this URL; `None` if they were never fetched, or not confirmed for 24 hours.
    pub fn get(&self, issuer: &str) -> Option<Arc<KeySet>> {
        self.0.sets.load().get(issuer).cloned()
    }

    /// Changes whenever the keys of any issuer change. A verified token must not be cached across generations, or
    /// tokens of a removed key would still be accepted.
    pub fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Acquire)
    }

    /// Fetches an issuer's keys again, for a `kid` that is not among them, and waits at most 6 seconds for the result.
    /// One `kid` causes at most one fetch in 30 seconds, and all of an issuer at most one in 5; otherwise it returns at
    /// once. Call [`JwksCache::get`] again afterwards.
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
            // In any case, also when dropped or timed out, the current keys decide.
            let _ = time::timeout(self.0.wait, answered).await;
        }
    }

    pub(crate) fn publish(&self, issuer: &str, keys: Option<Arc<KeySet>>) {
        let mut sets = self.0.sets.load().as_ref().clone();
        match keys {
            Some(keys) => sets.insert(issuer.to_owned(), keys),
            None => sets.remove(issuer),
        };
        self.0.sets.store(Arc::new(sets));
        // After the keys: a reader that sees the new generation also sees the new keys.
        self.0.generation.fetch_add(1, Ordering::Release);
    }
}
