//! Secrets of Vault for those that they are granted to: read, read again, and pushed when they change.
//!
//! What was read stays until something newer is: a Vault that is away, a right that was taken or a version that was
//! deleted empties no secret that is in use.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use merlon_compile::{Mesh, StateResource};
use merlon_config::{name::ServiceName, snapshot::SecretState};
use merlon_issuer::KvSecret;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    authority::Authority,
    random,
    world::{Secrets, World, Worlds},
};

/// How often each secret is read. Vault has no events that one could wait for on every server.
const EVERY: Duration = Duration::from_secs(5);
/// For one reading.
const PATIENCE: Duration = Duration::from_secs(5);
/// Readings at the same time.
const AT_ONCE: usize = 4;

/// What became of each grant. Cheap to clone; all clones know the same.
#[derive(Debug, Clone)]
pub(crate) struct Deliveries {
    said: Arc<Mutex<BTreeMap<ServiceName, Result<u64, String>>>>,
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
        self.lock().get(name).cloned()
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Takes over what was found, and logs what is new of it.
    fn take(&self, found: BTreeMap<ServiceName, Result<u64, String>>) {
        let mut said = self.lock();
        if *said == found {
            return;
        }
        for (name, result) in &found {
            if said.get(name) == Some(result) {
                continue;
            }
            match result {
                Ok(version) => tracing::info!(grant = %name, version, "secret.read"),
                Err(problem) => tracing::warn!(grant = %name, problem, "secret.failed"),
            }
        }
        *said = found;
        drop(said);
        self.changed.send_modify(|count| *count += 1);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<ServiceName, Result<u64, String>>> {
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
        loop {
            let mesh = Arc::clone(&worlds.borrow_and_update().mesh);
            known = self.read(&mesh, &known).await;
            self.worlds.publish_secrets(&known);
            let pause = EVERY.mul_f64(0.8 + 0.4 * random::unit());
            let sleep = tokio::time::sleep(pause);
            tokio::pin!(sleep);
            loop {
                tokio::select! {
                    () = &mut sleep => break,
                    Ok(()) = certified.changed() => break,
                    // What was granted just now is not waited for.
                    Ok(()) = worlds.changed() => if is_news(&worlds.borrow_and_update(), &mesh) { break },
                    () = shutdown.cancelled() => return,
                }
            }
        }
    }

    /// All that are granted to somebody, those that could not be read as they were.
    async fn read(&self, mesh: &Mesh, known: &Arc<Secrets>) -> Arc<Secrets> {
        let wanted = wanted(mesh);
        if wanted.is_empty() && known.is_empty() {
            self.deliveries.take(BTreeMap::new());
            return Arc::clone(known);
        }
        let readings = wanted.into_iter().map(async |(name, path)| {
            let read = self.secret(&format!("{}/{path}", name.namespace)).await;
            (name, read)
        });
        let readings: Vec<_> = stream::iter(readings)
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        let (mut secrets, mut said) = (Secrets::new(), BTreeMap::new());
        for (name, read) in readings {
            match read {
                Ok(KvSecret { version, data }) => {
                    said.insert(name.clone(), Ok(version));
                    let state = SecretState {
                        name: name.clone(),
                        version,
                        data,
                    };
                    secrets.insert(name, Arc::new(StateResource::secret(&state)));
                }
                Err(problem) => {
                    if let Some(before) = known.get(&name) {
                        secrets.insert(name.clone(), Arc::clone(before));
                    }
                    said.insert(name, Err(problem));
                }
            }
        }
        self.deliveries.take(said);
        match secrets == **known {
            true => Arc::clone(known),
            false => Arc::new(secrets),
        }
    }

    async fn secret(&self, path: &str) -> Result<KvSecret, String> {
        let certified = self.authority.certified();
        let certified = certified.ok_or("the certificate issuer has not answered yet")?;
        let reading = certified.issuer().secret(path);
        match tokio::time::timeout(PATIENCE, reading).await {
            Ok(read) => read.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer within {} seconds", PATIENCE.as_secs())),
        }
    }
}

/// Grants that reach a workload there is, with the path of each.
fn wanted(mesh: &Mesh) -> BTreeMap<ServiceName, String> {
    let granted: BTreeSet<&ServiceName> =
        mesh.proxies().flat_map(|proxy| proxy.secrets()).collect();
    let all = mesh.grants().iter();
    all.filter(|(name, _)| granted.contains(name))
        .map(|(name, path)| (name.clone(), path.clone()))
        .collect()
}

fn is_news(world: &World, mesh: &Mesh) -> bool {
    wanted(&world.mesh) != wanted(mesh)
}
