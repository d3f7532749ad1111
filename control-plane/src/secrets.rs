//! Granted secrets: read from the KV engine, refreshed, and pushed to the workloads when they change.
//!
//! A value stays in use until a newer one is read: an unavailable Vault, a revoked permission or a deleted version does not
//! remove it. A change of a grant's path grants another secret, though, and the value of the previous path is not given to
//! the new recipients.

mod reader;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use merlon_compile::{Granted, Mesh, StateResource};
use merlon_config::{
    name::{Namespace, ServiceName},
    snapshot::SecretState,
};
use merlon_issuer::KvSecret;
use tokio::{
    sync::{mpsc, watch},
    task::{self, JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;

use self::reader::{Found, NamespaceReader};
use crate::{
    issuance::authority::Authority,
    limits::SecretLimits,
    state::snapshot::{Secrets, Snapshots},
};

/// Maximum number of results that are published together.
const BATCH: usize = 64;

/// The last result of each grant. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Deliveries {
    results: Arc<Mutex<BTreeMap<Granted, Result<u64, String>>>>,
    changed: Arc<watch::Sender<u64>>,
}

impl Default for Deliveries {
    fn default() -> Self {
        Self {
            results: Arc::default(),
            changed: Arc::new(watch::Sender::new(0)),
        }
    }
}

impl Deliveries {
    /// The version that was read last, or the error; `None` before the first attempt.
    pub(crate) fn of(&self, name: &ServiceName) -> Option<Result<u64, String>> {
        let first = Granted {
            name: name.clone(),
            path: String::new(),
        };
        let results = self.lock();
        let (granted, results) = results.range(first..).next()?;
        (granted.name == *name).then(|| results.clone())
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Removes grants that no longer exist.
    fn keep(&self, wanted: &BTreeSet<Granted>) {
        let mut results = self.lock();
        let before = results.len();
        results.retain(|granted, _| wanted.contains(granted));
        let changed = results.len() != before;
        drop(results);
        if changed {
            self.changed.send_modify(|count| *count += 1);
        }
    }

    /// Stores a result, and logs it if it is new.
    fn take(&self, granted: &Granted, result: Result<u64, String>) {
        let mut results = self.lock();
        if results.get(granted) == Some(&result) {
            return;
        }
        match &result {
            Ok(version) => tracing::info!(grant = %granted.name, version, "secret.read"),
            Err(problem) => tracing::warn!(grant = %granted.name, problem, "secret.failed"),
        }
        results.insert(granted.clone(), result);
        drop(results);
        self.changed.send_modify(|count| *count += 1);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Granted, Result<u64, String>>> {
        self.results.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads and publishes the granted secrets.
pub(crate) struct Reader {
    pub(crate) snapshots: Snapshots,
    pub(crate) authority: Authority,
    pub(crate) deliveries: Deliveries,
    pub(crate) limits: SecretLimits,
}

impl Reader {
    /// Runs until `shutdown`.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        // A new issuer may return what the previous one did not.
        let issuer_changed = self.authority.watch();
        let authority = self.authority;
        let read = move |granted: Granted| secret(authority.clone(), granted);
        let following =
            Follower::new(self.snapshots, self.deliveries, self.limits).run(read, issuer_changed);
        tokio::select! {
            () = following => {}
            () = shutdown.cancelled() => {}
        }
    }
}

async fn secret(authority: Authority, granted: Granted) -> Result<KvSecret, String> {
    let certified = authority.certified();
    let certified = certified.ok_or("the certificate issuer has not answered yet")?;
    let path = format!("{}/{}", granted.name.namespace, granted.path);
    let read = certified.issuer().secret(&path).await;
    read.map_err(|error| error.to_string())
}

/// Runs a reader for each namespace that has grants, and publishes the results.
struct Follower {
    snapshots: Snapshots,
    deliveries: Deliveries,
    limits: SecretLimits,
    wanted: BTreeSet<Granted>,
    known: Arc<Secrets>,
    /// The grants that each reader reads. A reader ends when its sender is dropped.
    readers: BTreeMap<Namespace, watch::Sender<BTreeSet<Granted>>>,
    running: HashMap<task::Id, Namespace>,
    failed: BTreeSet<Namespace>,
}

impl Follower {
    fn new(snapshots: Snapshots, deliveries: Deliveries, limits: SecretLimits) -> Self {
        Self {
            snapshots,
            deliveries,
            limits,
            wanted: BTreeSet::new(),
            known: Arc::default(),
            readers: BTreeMap::new(),
            running: HashMap::new(),
            failed: BTreeSet::new(),
        }
    }

    async fn run<F, N>(
        mut self,
        read: impl Fn(Granted) -> F + Clone + Send + Sync + 'static,
        issuer_changed: watch::Receiver<N>,
    ) where
        F: Future<Output = Result<KvSecret, String>> + Send + 'static,
        N: Send + Sync + 'static,
    {
        let mut snapshots = self.snapshots.watch();
        let (sender, mut found) = mpsc::channel(BATCH);
        let reader = NamespaceReader::new(read, sender, self.limits);
        let mut running = JoinSet::new();
        loop {
            let wanted = wanted(&snapshots.borrow_and_update().mesh);
            for (namespace, wanted) in self.follow(wanted) {
                let (wanted, receiver) = watch::channel(wanted);
                let failed = self.failed.remove(&namespace);
                let reader = reader.clone().run(receiver, issuer_changed.clone());
                let restart = self.limits.restart;
                let task = running.spawn(async move {
                    if failed {
                        tokio::time::sleep(restart).await;
                    }
                    reader.await;
                });
                self.running.insert(task.id(), namespace.clone());
                self.readers.insert(namespace, wanted);
            }
            loop {
                tokio::select! {
                    changed = snapshots.changed() => match changed {
                        Ok(()) => break,
                        Err(_) => return,
                    },
                    Some(first) = found.recv() => self.take(first, &mut found),
                    Some(ended) = running.join_next_with_id() => {
                        if self.ended(ended) {
                            break;
                        }
                    }
                }
            }
        }
    }

    /// Whether a reader panicked and must be restarted.
    fn ended(&mut self, ended: Result<(task::Id, ()), JoinError>) -> bool {
        let error = match ended {
            Ok((id, ())) => {
                self.running.remove(&id);
                return false;
            }
            Err(error) => error,
        };
        let Some(namespace) = self.running.remove(&error.id()) else {
            return false;
        };
        tracing::error!(%namespace, %error, "secrets.reader_failed");
        self.readers.remove(&namespace);
        self.failed.insert(namespace.clone());
        self.wanted
            .retain(|granted| granted.name.namespace != namespace);
        true
    }

    /// Applies the current grants; returns those of namespaces that have no reader yet.
    fn follow(&mut self, wanted: BTreeSet<Granted>) -> BTreeMap<Namespace, BTreeSet<Granted>> {
        if wanted == self.wanted {
            return BTreeMap::new();
        }
        self.deliveries.keep(&wanted);
        if self.known.keys().any(|granted| !wanted.contains(granted)) {
            Arc::make_mut(&mut self.known).retain(|granted, _| wanted.contains(granted));
            self.snapshots.publish_secrets(&self.known);
        }
        let mut by_namespace: BTreeMap<Namespace, BTreeSet<Granted>> = BTreeMap::new();
        for granted in &wanted {
            let names = by_namespace.entry(granted.name.namespace.clone());
            names.or_default().insert(granted.clone());
        }
        self.wanted = wanted;
        self.readers.retain(|namespace, reader| {
            let Some(wanted) = by_namespace.remove(namespace) else {
                return false;
            };
            reader.send_if_modified(|known| {
                let changed = *known != wanted;
                *known = wanted;
                changed
            });
            true
        });
        by_namespace
    }

    /// Stores a result together with the others that are queued, and publishes them as one.
    fn take(&mut self, first: Found<KvSecret>, found: &mut mpsc::Receiver<Found<KvSecret>>) {
        let more = std::iter::from_fn(|| found.try_recv().ok());
        for (granted, read) in std::iter::once(first).chain(more).take(BATCH) {
            // The grant may have been removed since.
            if self.wanted.contains(&granted) {
                self.put(granted, read);
            }
        }
        self.snapshots.publish_secrets(&self.known);
    }

    fn put(&mut self, granted: Granted, read: Result<KvSecret, String>) {
        let read = read.map(|KvSecret { version, data }| {
            let state = SecretState {
                name: granted.name.clone(),
                path: granted.path.clone(),
                version,
                data,
            };
            (version, StateResource::secret(&state))
        });
        let results = read.as_ref().map(|(version, _)| *version);
        self.deliveries
            .take(&granted, results.map_err(Clone::clone));
        if let Ok((_, secret)) = read
            && self
                .known
                .get(&granted)
                .is_none_or(|before| **before != secret)
        {
            Arc::make_mut(&mut self.known).insert(granted, Arc::new(secret));
        }
    }
}

/// The grants of all workloads.
fn wanted(mesh: &Mesh) -> BTreeSet<Granted> {
    let all = mesh.proxies().flat_map(|proxy| proxy.secrets());
    all.cloned().collect()
}

#[cfg(test)]
mod tests;
