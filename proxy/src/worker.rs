//! One worker: a thread, its listeners, its pools and caches. A request never leaves it and takes no lock.

use std::{
    cell::{Cell, RefCell},
    ops::Deref,
    rc::{Rc, Weak},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use merlon_certs::{MERLON_H2, MERLON_TCP, MeshTls};
use merlon_config::resource::OutboundListener;
use rustls::ServerConfig;
use tokio::task::JoinHandle;

use crate::{
    downstream::listener,
    gateway, inbound,
    outbound::{self, intercepted},
    protocol::trace_context::Random,
    request::{open_permit::Standing, token_cache::TokenCache},
    state::{Shared, Shutdown, Snapshot, Worker},
    telemetry::{
        access_log::{AccessLog, WorkerLog},
        metrics::WorkerMetrics,
    },
    upstream::{mesh::Peers, program::Programs},
};

/// Serves until the shutdown. Runs on a thread of its own, within a [`tokio::task::LocalSet`].
pub async fn run(worker: Worker) {
    run_with_log(worker, AccessLog::stdout()).await;
}

/// As [`run`], with a log of one's own.
pub async fn run_with_log(worker: Worker, log: AccessLog) {
    let Worker {
        index,
        shared,
        metrics,
        inbound,
        outbound,
        interception,
        shutdown,
    } = worker;
    let local = Rc::new(Local::new(index, shared, metrics, log, shutdown));
    tracing::debug!(index, "worker begins");
    let mut tasks = vec![
        spawn(tidy(Rc::clone(&local))),
        spawn(follow(Rc::clone(&local))),
        spawn(expire(Rc::clone(&local))),
    ];
    for listener in inbound.into_iter().filter_map(listener::adopt) {
        let local = Rc::clone(&local);
        tasks.push(spawn(async move {
            match interception {
                true => listener::serve(&local, &listener, intercepted::inbound).await,
                false => listener::serve(&local, &listener, inbound::connection).await,
            }
        }));
    }
    for listener in outbound.into_iter().filter_map(listener::adopt) {
        let local = Rc::clone(&local);
        tasks.push(spawn(async move {
            match interception {
                true => listener::serve(&local, &listener, intercepted::outbound).await,
                false => listener::serve(&local, &listener, outbound::connection).await,
            }
        }));
    }
    tasks.push(spawn(listener::keep::keep::<OutboundListener>(Rc::clone(
        &local,
    ))));
    tasks.push(spawn(listener::keep::keep::<gateway::listen::Port>(
        Rc::clone(&local),
    )));
    local.shutdown.drain.cancelled().await;
    tokio::select! {
        () = local.quiet() => {}
        () = local.shutdown.end.cancelled() => {}
    }
    for task in tasks {
        task.abort();
    }
    local.log.flush();
    tracing::debug!(index, "worker ended");
}

fn spawn(task: impl Future<Output = ()> + 'static) -> JoinHandle<()> {
    tokio::task::spawn_local(task)
}

/// What a worker's requests have in common.
#[derive(Debug)]
pub(crate) struct Local {
    pub(crate) index: usize,
    pub(crate) shared: Arc<Shared>,
    pub(crate) metrics: Arc<WorkerMetrics>,
    pub(crate) log: WorkerLog,
    pub(crate) shutdown: Shutdown,
    pub(crate) random: Random,
    pub(crate) peers: Peers,
    pub(crate) programs: Programs,
    pub(crate) tokens: TokenCache,
    pub(crate) names: outbound::resolve::Names,
    pub(crate) recorder: crate::request::checks::authorize::Recorder,
    pub(crate) resolver: outbound::egress::Resolver,
    pub(crate) in_flight: Cell<usize>,
    pub(crate) handshakes: Cell<usize>,
    connections: Cell<usize>,
    quiet: tokio::sync::Notify,
    current: RefCell<Option<Rc<Current>>>,
    server_tls: RefCell<Option<(Arc<MeshTls>, Arc<ServerConfig>)>>,
    open: RefCell<Vec<Weak<Standing>>>,
}

/// The state that a request begins with and keeps to its end.
#[derive(Debug)]
pub(crate) struct Current {
    source: Arc<Option<Arc<Snapshot>>>,
    own: Option<Rc<str>>,
    /// Grows with each snapshot that this worker sees.
    pub(crate) generation: u64,
}

impl Current {
    /// The own SPIFFE ID.
    pub(crate) fn own(&self) -> Option<Rc<str>> {
        self.own.clone()
    }

    /// None: cold.
    pub(crate) fn snapshot(&self) -> Option<&Arc<Snapshot>> {
        self.source.as_ref().as_ref()
    }
}

impl Local {
    pub(crate) fn new(
        index: usize,
        shared: Arc<Shared>,
        metrics: Arc<WorkerMetrics>,
        log: AccessLog,
        shutdown: Shutdown,
    ) -> Self {
        Self {
            index,
            shared,
            metrics,
            log: WorkerLog::new(log),
            shutdown,
            random: Random::seeded(),
            peers: Peers::default(),
            programs: Programs::default(),
            tokens: TokenCache::default(),
            names: outbound::resolve::Names::default(),
            recorder: crate::request::checks::authorize::Recorder::default(),
            resolver: outbound::egress::Resolver::default(),
            in_flight: Cell::new(0),
            handshakes: Cell::new(0),
            connections: Cell::new(0),
            quiet: tokio::sync::Notify::new(),
            current: RefCell::new(None),
            server_tls: RefCell::new(None),
            open: RefCell::default(),
        }
    }

    /// The snapshot in force. A request asks once.
    pub(crate) fn current(&self) -> Rc<Current> {
        let live = self.shared.snapshot.load();
        let mut mine = self.current.borrow_mut();
        match &*mine {
            // Counting references among threads costs; this worker's own count does not.
            Some(current) if Arc::ptr_eq(&current.source, &live) => Rc::clone(current),
            old => {
                let generation = old.as_ref().map_or(1, |old| old.generation + 1);
                let own = live
                    .as_ref()
                    .as_ref()
                    .map(|snapshot| Rc::from(snapshot.identity().to_string()));
                let new = Rc::new(Current {
                    source: Arc::clone(&live),
                    own,
                    generation,
                });
                *mine = Some(Rc::clone(&new));
                new
            }
        }
    }

    /// The identity in force.
    pub(crate) fn identity(&self) -> Option<Arc<MeshTls>> {
        self.shared.identity.load().as_ref().clone()
    }

    /// What we answer mesh TLS with at this moment.
    pub(crate) fn server_tls(&self) -> Option<Arc<ServerConfig>> {
        let identity = self.identity()?;
        let mut mine = self.server_tls.borrow_mut();
        if let Some((made_of, config)) = &*mine
            && Arc::ptr_eq(made_of, &identity)
        {
            return Some(Arc::clone(config));
        }
        let config = match identity.server_config(&[MERLON_H2, MERLON_TCP]) {
            Ok(config) => config,
            Err(error) => {
                tracing::error!(%error, "the identity makes no TLS configuration");
                return None;
            }
        };
        *mine = Some((identity, Arc::clone(&config)));
        Some(config)
    }

    /// Resolves when there is no identity any more, because it has expired: what it opened must close.
    pub(crate) fn identity_gone(&self) -> impl Future<Output = ()> + use<> {
        let identity = self.shared.identity.clone();
        async move {
            let mut changes = identity.watch();
            while identity.load().is_some() && changes.changed().await.is_ok() {}
        }
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.get()
    }

    pub(crate) fn connection_opened(&self) {
        self.connections.set(self.connections.get() + 1);
    }

    pub(crate) fn connection_closed(&self) {
        self.connections
            .set(self.connections.get().saturating_sub(1));
        if self.connections.get() == 0 {
            self.quiet.notify_waiters();
        }
    }

    async fn quiet(&self) {
        while self.connections.get() > 0 {
            self.quiet.notified().await;
        }
    }

    /// Registers what is about to be decided: a change of the snapshot from now on asks again.
    pub(crate) fn register(&self, standing: Standing) -> Rc<Standing> {
        let held = Rc::new(standing);
        let mut all = self.open.borrow_mut();
        if all.len() == all.capacity() {
            all.retain(|one| one.strong_count() > 0);
        }
        all.push(Rc::downgrade(&held));
        held
    }

    /// What is open now. On its own, because what ends may take itself off the list.
    fn open(&self) -> Vec<Rc<Standing>> {
        self.open
            .borrow()
            .iter()
            .filter_map(Weak::upgrade)
            .collect()
    }

    fn decide_again(&self) {
        let current = self.current();
        for one in self.open() {
            one.recheck(current.snapshot().map(|snapshot| &**snapshot));
        }
    }

    fn expire(&self) {
        let now = Timestamp::now();
        for one in self.open() {
            one.expire(now);
        }
    }

    /// Gives back the memory of what has ended.
    fn tidy_open(&self) {
        let mut all = self.open.borrow_mut();
        all.retain(|one| one.strong_count() > 0);
        let enough = 2 * all.len();
        all.shrink_to(enough);
    }
}

/// Decides again, on every new snapshot, about what is still open.
async fn follow(local: Rc<Local>) {
    let mut changes = local.shared.snapshot.watch();
    while changes.changed().await.is_ok() {
        local.decide_again();
    }
}

/// Ends what outlives its token, within a second.
async fn expire(local: Rc<Local>) {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        local.expire();
    }
}

async fn tidy(local: Rc<Local>) {
    let mut identities = local.shared.identity.watch();
    loop {
        tokio::select! {
            // Connections of an earlier certificate are let go at once; they end with their last stream.
            _ = identities.changed() => {}
            () = tokio::time::sleep(Duration::from_secs(10)) => {}
        }
        local.programs.tidy();
        local.peers.tidy(local.identity().as_ref());
        local.tokens.tidy();
        local.tidy_open();
    }
}

/// Runs hyper's tasks on this thread.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LocalExecutor;

impl<F> hyper::rt::Executor<F> for LocalExecutor
where
    F: Future<Output = ()> + 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// A number that goes down again when this is dropped.
#[derive(Debug)]
pub(crate) struct Counted<L: Deref<Target = Local>> {
    local: L,
    which: fn(&Local) -> &Cell<usize>,
}

impl<L: Deref<Target = Local>> Counted<L> {
    /// One more, unless there are `limit` already.
    pub(crate) fn within(
        local: L,
        which: fn(&Local) -> &Cell<usize>,
        limit: usize,
    ) -> Option<Self> {
        let now = which(&local).get();
        (now < limit).then(|| {
            which(&local).set(now + 1);
            Self { local, which }
        })
    }
}

impl<L: Deref<Target = Local>> Drop for Counted<L> {
    fn drop(&mut self) {
        let count = (self.which)(&self.local);
        count.set(count.get().saturating_sub(1));
    }
}
