//! Secrets of Vault for those that they are granted to: read, read again, and pushed when they change.
//!
//! What was read stays until something newer is: a Vault that is away, a right that was taken or a version that was
//! deleted empties no secret that is in use. But who edits a grant's path grants another secret, and what was read for
//! the one before is not given to whom it reaches now.

mod round;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::StreamExt as _;
use merlon_compile::{Granted, Mesh, StateResource};
use merlon_config::{name::ServiceName, snapshot::SecretState};
use merlon_issuer::KvSecret;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::round::{Begin, Found};
use crate::{
    authority::Authority,
    random,
    world::{Secrets, World, Worlds},
};

/// How often each secret is read. Vault has no events that one could wait for on every server.
const EVERY: Duration = Duration::from_secs(5);
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
        let said = self.lock();
        let mut found = said.iter().filter(|(granted, _)| granted.name == *name);
        found.next().map(|(_, said)| said.clone())
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
        let mut worlds = self.worlds.watch();
        let mut certified = self.authority.watch();
        let mut known = Arc::<Secrets>::default();
        let mut begin = Begin::default();
        loop {
            let wanted = wanted(&worlds.borrow_and_update().mesh);
            tokio::select! {
                () = self.read(&wanted, &mut known, &mut begin) => {}
                () = shutdown.cancelled() => return,
            }
            let pause = EVERY.mul_f64(0.8 + 0.4 * random::unit());
            let sleep = tokio::time::sleep(pause);
            tokio::pin!(sleep);
            loop {
                tokio::select! {
                    () = &mut sleep => break,
                    Ok(()) = certified.changed() => break,
                    // What was granted just now is not waited for.
                    Ok(()) = worlds.changed() => if is_news(&worlds.borrow_and_update(), &wanted) { break },
                    () = shutdown.cancelled() => return,
                }
            }
        }
    }

    /// All that are granted to somebody, each published as soon as it is read; those that could not be read stay as they
    /// were.
    async fn read(&self, wanted: &BTreeSet<Granted>, known: &mut Arc<Secrets>, begin: &mut Begin) {
        self.deliveries.keep(wanted);
        if known.keys().any(|granted| !wanted.contains(granted)) {
            Arc::make_mut(known).retain(|granted, _| wanted.contains(granted));
            self.worlds.publish_secrets(known);
        }
        let read = |granted: Granted| self.secret(granted);
        let mut found = Box::pin(begin.round(wanted, read).ready_chunks(TOGETHER));
        let mut later = Vec::new();
        while let Some(found) = found.next().await {
            for found in found {
                match found {
                    Found::Read(granted, read) => self.take(known, granted, read),
                    Found::Later(granted) => later.push(granted),
                }
            }
            self.worlds.publish_secrets(known);
        }
        drop(found);
        later.into_iter().for_each(|granted| begin.with(granted));
    }

    fn take(&self, known: &mut Arc<Secrets>, granted: Granted, read: Result<KvSecret, String>) {
        let read = read.map(|KvSecret { version, data }| {
            let state = SecretState {
                name: granted.name.clone(),
                path: granted.path.clone(),
                version,
                data,
            };
            (version, StateResource::secret(&state))
        });
        self.deliveries.take(
            &granted,
            read.as_ref()
                .map(|(version, _)| *version)
                .map_err(Clone::clone),
        );
        if let Ok((_, secret)) = read
            && known.get(&granted).is_none_or(|before| **before != secret)
        {
            Arc::make_mut(known).insert(granted, Arc::new(secret));
        }
    }

    async fn secret(&self, granted: Granted) -> Result<KvSecret, String> {
        let certified = self.authority.certified();
        let certified = certified.ok_or("the certificate issuer has not answered yet")?;
        let path = format!("{}/{}", granted.name.namespace, granted.path);
        let read = certified.issuer().secret(&path).await;
        read.map_err(|error| error.to_string())
    }
}

/// Grants that reach a workload there is.
fn wanted(mesh: &Mesh) -> BTreeSet<Granted> {
    let all = mesh.proxies().flat_map(|proxy| proxy.secrets());
    all.cloned().collect()
}

fn is_news(world: &World, known: &BTreeSet<Granted>) -> bool {
    wanted(&world.mesh) != *known
}
