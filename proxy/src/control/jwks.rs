//! Keys of token issuers: fetched here, read by workers without a lock.

mod budget;
mod document;
mod http;
mod issuer;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use merlon_config::resource::TokenIssuer;
use merlon_policy::authn::jwks::KeySet;
use tokio::{
    sync::{mpsc, oneshot},
    task::{AbortHandle, JoinSet},
    time,
};
use url::Url;

use crate::{state::Snapshot, telemetry::metrics::Metrics};

/// Key sets by issuer URL. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct JwksCache(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    sets: ArcSwap<HashMap<String, Arc<KeySet>>>,
    generation: AtomicU64,
    refetches: mpsc::Sender<Refetch>,
}

/// A worker met a key that the issuer's set does not have.
#[derive(Debug)]
pub(crate) struct Refetch {
    issuer: String,
    question: Question,
}

#[derive(Debug)]
struct Question {
    /// Empty where the issuer has no keys at all.
    kid: String,
    done: oneshot::Sender<()>,
}

/// How long a request waits for a refetch: a fetch takes 5 seconds at most.
const PATIENCE: Duration = Duration::from_secs(6);

/// Refetches that may wait at once; further requests are decided by the keys at hand.
const WAITING: usize = 256;

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

    fn publish(&self, issuer: &str, keys: Option<Arc<KeySet>>) {
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

/// Where an issuer's keys are, and whom to trust about it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct IssuerSource {
    issuer: String,
    jwks_uri: Option<Url>,
    ca_certificates: Option<String>,
}

impl From<&TokenIssuer> for IssuerSource {
    fn from(issuer: &TokenIssuer) -> Self {
        Self {
            issuer: issuer.issuer.clone(),
            jwks_uri: issuer.jwks_uri.clone(),
            ca_certificates: issuer.ca_certificates.clone(),
        }
    }
}

/// Keeps the cache up to date: one task per issuer, so that a bad one never touches another.
#[derive(Debug)]
pub(crate) struct Fetcher {
    cache: JwksCache,
    asked: mpsc::Receiver<Refetch>,
    metrics: Arc<Metrics>,
    running: BTreeMap<String, Running>,
    tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Running {
    source: IssuerSource,
    refetches: mpsc::Sender<Question>,
    task: AbortHandle,
}

impl Fetcher {
    pub(crate) fn new(
        cache: JwksCache,
        asked: mpsc::Receiver<Refetch>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            cache,
            asked,
            metrics,
            running: BTreeMap::new(),
            tasks: JoinSet::new(),
        }
    }

    /// Follows the issuers of `snapshot` until the process ends.
    pub(crate) async fn run(mut self, snapshot: merlon_config::live::Live<Option<Arc<Snapshot>>>) {
        let mut changed = snapshot.watch();
        loop {
            // Marked as seen before it is read: a change in between is seen by the next turn.
            changed.borrow_and_update();
            let issuers = issuers(snapshot.load_full().as_deref());
            self.follow(issuers);
            loop {
                tokio::select! {
                    Ok(()) = changed.changed() => break,
                    Some(refetch) = self.asked.recv() => self.pass_on(refetch),
                    // An issuer's task ends only when it is aborted; nothing is left to do for it.
                    Some(_) = self.tasks.join_next() => {}
                    else => return,
                }
            }
        }
    }

    fn follow(&mut self, wanted: BTreeMap<String, IssuerSource>) {
        let gone = |(name, running): (&String, &Running)| {
            (wanted.get(name) != Some(&running.source)).then(|| name.clone())
        };
        let gone: Vec<String> = self.running.iter().filter_map(gone).collect();
        for name in gone {
            if let Some(running) = self.running.remove(&name) {
                running.task.abort();
                self.cache.publish(&name, None);
            }
        }
        for (name, source) in wanted {
            if self.running.contains_key(&name) {
                continue;
            }
            let (refetches, asked) = mpsc::channel(WAITING);
            let follow = issuer::follow(
                source.clone(),
                self.cache.clone(),
                asked,
                Arc::clone(&self.metrics),
            );
            let task = self.tasks.spawn(follow);
            self.running.insert(
                name,
                Running {
                    source,
                    refetches,
                    task,
                },
            );
        }
    }

    fn pass_on(&self, refetch: Refetch) {
        if let Some(running) = self.running.get(&refetch.issuer) {
            // A full queue drops the question: who asked goes on with the keys at hand.
            let _ = running.refetches.try_send(refetch.question);
        }
    }
}

/// Every issuer that a service names. The first by service name wins where two say different things of one issuer.
fn issuers(snapshot: Option<&Snapshot>) -> BTreeMap<String, IssuerSource> {
    let mut wanted = BTreeMap::new();
    let Some(snapshot) = snapshot else {
        return wanted;
    };
    let mut services: Vec<_> = snapshot.services.iter().collect();
    services.sort_by_key(|(name, _)| *name);
    for (_, service) in services {
        for document in &service.state.authentication {
            for issuer in &document.spec.issuers {
                let source = IssuerSource::from(issuer);
                let kept = wanted
                    .entry(issuer.issuer.clone())
                    .or_insert_with(|| source.clone());
                if *kept != source {
                    tracing::warn!(issuer = issuer.issuer, resource = %document.from,
                        "the issuer is described differently elsewhere; this description is not used for its keys");
                }
            }
        }
    }
    wanted
}

#[cfg(test)]
mod tests;
