//! Secrets of Vault for those that they are granted to: read, read again, and pushed when they change.
//!
//! What was read stays until something newer is: a Vault that is away, a right that was taken or a version that was
//! deleted empties no secret that is in use. But who edits a grant's path grants another secret, and what was read for
//! the one before is not given to whom it reaches now.

mod reader;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
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

use self::reader::{Common, Found};
use crate::{
    issuance::authority::Authority,
    state::snapshot::{Secrets, Worlds},
};

/// Before a turn that broke begins again.
const BROKEN: Duration = Duration::from_secs(30);
/// Changes that are published as one.
const TOGETHER: usize = 64;

/// What became of each grant. Cheap to clone; all clones know the same.
#[derive(Debug, Clone)]
pub(crate) struct Deliveries {
    said: Arc<Mutex<BTreeMap<Granted, Result<u64, String>>>>,
    changed: Arc<watch::Sender<u64>>,
}

impl Default for Deliveries {
    fn default() -> Self {
        Self {
            said: Arc::default(),
            changed: Arc::new(watch::Sender::new(0)),
        }
    }
}

impl Deliveries {
    /// The version that was read last, or why none is; `None`: nobody has tried yet.
    pub(crate) fn of(&self, name: &ServiceName) -> Option<Result<u64, String>> {
        let first = Granted {
            name: name.clone(),
            path: String::new(),
        };
        let said = self.lock();
        let (granted, said) = said.range(first..).next()?;
        (granted.name == *name).then(|| said.clone())
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Forgets those that are granted no more.
    fn keep(&self, wanted: &BTreeSet<Granted>) {
        let mut said = self.lock();
        let before = said.len();
        said.retain(|granted, _| wanted.contains(granted));
        let moved = said.len() != before;
        drop(said);
        if moved {
            self.changed.send_modify(|count| *count += 1);
        }
    }

    /// Takes over what was found, and logs it where it is new.
    fn take(&self, granted: &Granted, result: Result<u64, String>) {
        let mut said = self.lock();
        if said.get(granted) == Some(&result) {
            return;
        }
        match &result {
            Ok(version) => tracing::info!(grant = %granted.name, version, "secret.read"),
            Err(problem) => tracing::warn!(grant = %granted.name, problem, "secret.failed"),
        }
        said.insert(granted.clone(), result);
        drop(said);
        self.changed.send_modify(|count| *count += 1);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Granted, Result<u64, String>>> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads them.
pub(crate) struct Reader {
    pub(crate) worlds: Worlds,
    pub(crate) authority: Authority,
    pub(crate) deliveries: Deliveries,
}

impl Reader {
    /// Until `shutdown`.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        // Another issuer may give what the one before did not.
        let nudged = self.authority.watch();
        let authority = self.authority;
        let read = move |granted: Granted| secret(authority.clone(), granted);
        let following = Follower::new(self.worlds, self.deliveries).run(read, nudged);
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

/// Keeps a turn for each namespace that is granted something, and publishes what they find.
struct Follower {
    worlds: Worlds,
    deliveries: Deliveries,
    wanted: BTreeSet<Granted>,
    known: Arc<Secrets>,
    /// What each turn is told to read. A turn ends with its sender.
    turns: BTreeMap<Namespace, watch::Sender<BTreeSet<Granted>>>,
    running: HashMap<task::Id, Namespace>,
    broken: BTreeSet<Namespace>,
}

impl Follower {
    fn new(worlds: Worlds, deliveries: Deliveries) -> Self {
        Self {
            worlds,
            deliveries,
            wanted: BTreeSet::new(),
            known: Arc::default(),
            turns: BTreeMap::new(),
            running: HashMap::new(),
            broken: BTreeSet::new(),
        }
    }

    async fn run<F, N>(
        mut self,
        read: impl Fn(Granted) -> F + Clone + Send + Sync + 'static,
        nudged: watch::Receiver<N>,
    ) where
        F: Future<Output = Result<KvSecret, String>> + Send + 'static,
        N: Send + Sync + 'static,
    {
        let mut worlds = self.worlds.watch();
        let (sender, mut found) = mpsc::channel(TOGETHER);
        let common = Common::new(read, sender);
        let mut running = JoinSet::new();
        loop {
            let wanted = wanted(&worlds.borrow_and_update().mesh);
            for (namespace, turn) in self.follow(wanted) {
                let (told, wanted) = watch::channel(turn);
                let broke = self.broken.remove(&namespace);
                let turn = common.clone().turn(wanted, nudged.clone());
                let turn = running.spawn(async move {
                    if broke {
                        tokio::time::sleep(BROKEN).await;
                    }
                    turn.await;
                });
                self.running.insert(turn.id(), namespace.clone());
                self.turns.insert(namespace, told);
            }
            loop {
                tokio::select! {
                    changed = worlds.changed() => match changed {
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

    /// Whether a turn has to begin again: it broke, and is still wanted.
    fn ended(&mut self, ended: Result<(task::Id, ()), JoinError>) -> bool {
        let broke = match ended {
            Ok((id, ())) => {
                self.running.remove(&id);
                return false;
            }
            Err(broke) => broke,
        };
        let Some(namespace) = self.running.remove(&broke.id()) else {
            return false;
        };
        tracing::error!(%namespace, error = %broke, "secrets.turn_broke: it begins again after a while");
        self.turns.remove(&namespace);
        self.broken.insert(namespace.clone());
        self.wanted
            .retain(|granted| granted.name.namespace != namespace);
        true
    }

    /// Takes over what is granted now; gives the namespaces that have no turn yet.
    fn follow(&mut self, wanted: BTreeSet<Granted>) -> BTreeMap<Namespace, BTreeSet<Granted>> {
        if wanted == self.wanted {
            return BTreeMap::new();
        }
        self.deliveries.keep(&wanted);
        if self.known.keys().any(|granted| !wanted.contains(granted)) {
            Arc::make_mut(&mut self.known).retain(|granted, _| wanted.contains(granted));
            self.worlds.publish_secrets(&self.known);
        }
        let mut by_namespace: BTreeMap<Namespace, BTreeSet<Granted>> = BTreeMap::new();
        for granted in &wanted {
            let turn = by_namespace.entry(granted.name.namespace.clone());
            turn.or_default().insert(granted.clone());
        }
        self.wanted = wanted;
        self.turns.retain(|namespace, told| {
            let Some(turn) = by_namespace.remove(namespace) else {
                return false;
            };
            told.send_if_modified(|known| {
                let moved = *known != turn;
                *known = turn;
                moved
            });
            true
        });
        by_namespace
    }

    /// Takes over what was found, with what else is there already, and publishes it as one.
    fn take(&mut self, first: Found<KvSecret>, found: &mut mpsc::Receiver<Found<KvSecret>>) {
        let more = std::iter::from_fn(|| found.try_recv().ok());
        for (granted, read) in std::iter::once(first).chain(more).take(TOGETHER) {
            // Read before it was taken away.
            if self.wanted.contains(&granted) {
                self.put(granted, read);
            }
        }
        self.worlds.publish_secrets(&self.known);
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
        let said = read.as_ref().map(|(version, _)| *version);
        self.deliveries.take(&granted, said.map_err(Clone::clone));
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

/// Grants that reach a workload there is.
fn wanted(mesh: &Mesh) -> BTreeSet<Granted> {
    let all = mesh.proxies().flat_map(|proxy| proxy.secrets());
    all.cloned().collect()
}

#[cfg(test)]
mod tests;
