//! The state that all requests of one worker share.

use std::{
    cell::{Cell, RefCell},
    ops::Deref,
    rc::{Rc, Weak},
    sync::Arc,
};

use merlon_certs::{MERLON_H2, MERLON_TCP, MeshTls};
use merlon_config::clock;
use rustls::ServerConfig;

use super::{open_permit::OpenPermit, token_cache::TokenCache};
use crate::{
    protocol::trace_context::Random,
    state::{
        shared::{Shared, Shutdown},
        snapshot::Snapshot,
    },
    telemetry::{
        access_log::{AccessLog, WorkerLog},
        decision_log::Recorder,
        metrics::worker::WorkerMetrics,
    },
    upstream::{dial, dns::Resolver, mesh::Peers, program::Programs, route::RouteCache},
};

/// The state that all requests of one worker share.
#[derive(Debug)]
pub(crate) struct WorkerContext {
    pub(crate) index: usize,
    pub(crate) shared: Arc<Shared>,
    pub(crate) metrics: Arc<WorkerMetrics>,
    pub(crate) log: WorkerLog,
    pub(crate) shutdown: Shutdown,
    pub(crate) random: Rc<Random>,
    pub(crate) peers: Peers,
    pub(crate) programs: Rc<Programs>,
    pub(crate) tokens: TokenCache,
    pub(crate) names: RouteCache,
    pub(crate) recorder: Recorder,
    pub(crate) resolver: Resolver,
    pub(crate) in_flight: Cell<usize>,
    pub(crate) handshakes: Cell<usize>,
    connections: Cell<usize>,
    quiet: tokio::sync::Notify,
    current: RefCell<Option<Rc<CurrentSnapshot>>>,
    server_tls: RefCell<Option<(Arc<MeshTls>, Arc<ServerConfig>)>>,
    open: RefCell<Vec<Weak<OpenPermit>>>,
}

/// The snapshot that a request starts with and keeps to its end.
#[derive(Debug)]
pub(crate) struct CurrentSnapshot {
    source: Arc<Option<Arc<Snapshot>>>,
    own: Option<Rc<str>>,
    /// Grows with each snapshot that this worker sees.
    pub(crate) generation: u64,
}

impl CurrentSnapshot {
    /// The workload's own SPIFFE ID.
    pub(crate) fn own(&self) -> Option<Rc<str>> {
        self.own.clone()
    }

    /// `None` until the first snapshot.
    pub(crate) fn snapshot(&self) -> Option<&Arc<Snapshot>> {
        self.source.as_ref().as_ref()
    }
}

impl WorkerContext {
    pub(crate) fn new(
        index: usize,
        shared: Arc<Shared>,
        metrics: Arc<WorkerMetrics>,
        log: AccessLog,
        shutdown: Shutdown,
    ) -> Self {
        let random = Rc::new(Random::seeded());
        let limits = shared.limits;
        let programs = Rc::new(Programs::new(limits, shared.listeners.clone()));
        Self {
            index,
            peers: Peers::new(
                shared.identity.clone(),
                Rc::clone(&programs),
                Arc::clone(&metrics),
                Rc::clone(&random),
                limits,
            ),
            log: WorkerLog::new(log, Arc::clone(&metrics)),
            shared,
            metrics,
            shutdown,
            random,
            programs,
            tokens: TokenCache::new(&limits),
            names: RouteCache::default(),
            recorder: Recorder::new(&limits),
            resolver: Resolver::default(),
            in_flight: Cell::new(0),
            handshakes: Cell::new(0),
            connections: Cell::new(0),
            quiet: tokio::sync::Notify::new(),
            current: RefCell::new(None),
            server_tls: RefCell::new(None),
            open: RefCell::default(),
        }
    }

    /// The snapshot in force. Each request loads it once.
    pub(crate) fn current(&self) -> Rc<CurrentSnapshot> {
        let live = self.shared.snapshot.load();
        let mut mine = self.current.borrow_mut();
        match &*mine {
            // Cloning the shared `Arc` would contend between threads; the worker's own `Rc` does not.
            Some(current) if Arc::ptr_eq(&current.source, &live) => Rc::clone(current),
            old => {
                let generation = old.as_ref().map_or(1, |old| old.generation + 1);
                let own = live
                    .as_ref()
                    .as_ref()
                    .map(|snapshot| Rc::from(snapshot.identity().to_string()));
                let new = Rc::new(CurrentSnapshot {
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

    /// The server configuration for mesh TLS, of the current identity.
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
                tracing::error!(%error, "tls.configuration_failed");
                return None;
            }
        };
        *mine = Some((identity, Arc::clone(&config)));
        Some(config)
    }

    /// Resolves when the identity has expired: connections that were opened with it must close.
    pub(crate) fn identity_gone(&self) -> impl Future<Output = ()> + use<> {
        dial::identity_gone(&self.shared.identity)
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.get()
    }

    fn connection_opened(&self) {
        self.connections.set(self.connections.get() + 1);
    }

    fn connection_closed(&self) {
        self.connections
            .set(self.connections.get().saturating_sub(1));
        if self.connections.get() == 0 {
            self.quiet.notify_waiters();
        }
    }

    pub(crate) async fn quiet(&self) {
        while self.connections.get() > 0 {
            self.quiet.notified().await;
        }
    }

    /// Counts a request until the guard is dropped; `None` when as many as allowed are in progress.
    pub(crate) fn start_request(self: &Rc<Self>) -> Option<InFlightGuard<Rc<Self>>> {
        let limit = self.shared.limits.in_flight;
        InFlightGuard::within(Rc::clone(self), |local| &local.in_flight, limit)
    }

    /// Registers a permit before its decision: every later snapshot change evaluates it again.
    pub(crate) fn register(&self, open_permit: OpenPermit) -> Rc<OpenPermit> {
        let permit = Rc::new(open_permit);
        let mut all = self.open.borrow_mut();
        if all.len() == all.capacity() {
            all.retain(|one| one.strong_count() > 0);
        }
        all.push(Rc::downgrade(&permit));
        permit
    }

    /// The open permits. A copy, because ending one may change the list.
    fn open(&self) -> Vec<Rc<OpenPermit>> {
        self.open
            .borrow()
            .iter()
            .filter_map(Weak::upgrade)
            .collect()
    }

    pub(crate) fn decide_again(&self) {
        let current = self.current();
        for one in self.open() {
            one.recheck(current.snapshot().map(|snapshot| &**snapshot));
        }
    }

    pub(crate) fn expire(&self) {
        let now = clock::now();
        for one in self.open() {
            one.expire(now);
        }
    }

    /// Frees the memory of ended permits.
    pub(crate) fn tidy_open(&self) {
        let mut all = self.open.borrow_mut();
        all.retain(|one| one.strong_count() > 0);
        let enough = 2 * all.len();
        all.shrink_to(enough);
    }
}

/// Counts a connection, or a tunnel that has outlived its HTTP/1 connection. A drain waits until all are dropped.
#[derive(Debug)]
pub(crate) struct ConnectionGuard(Rc<WorkerContext>);

impl ConnectionGuard {
    pub(crate) fn new(local: &Rc<WorkerContext>) -> Self {
        local.connection_opened();
        Self(Rc::clone(local))
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.0.connection_closed();
    }
}

/// Increments a counter, and decrements it on drop.
#[derive(Debug)]
pub(crate) struct InFlightGuard<L: Deref<Target = WorkerContext>> {
    local: L,
    which: fn(&WorkerContext) -> &Cell<usize>,
}

impl<L: Deref<Target = WorkerContext>> InFlightGuard<L> {
    /// Increments the counter, unless it has reached `limit`.
    pub(crate) fn within(
        local: L,
        which: fn(&WorkerContext) -> &Cell<usize>,
        limit: usize,
    ) -> Option<Self> {
        let now = which(&local).get();
        (now < limit).then(|| {
            which(&local).set(now + 1);
            Self { local, which }
        })
    }
}

impl<L: Deref<Target = WorkerContext>> Drop for InFlightGuard<L> {
    fn drop(&mut self) {
        let count = (self.which)(&self.local);
        count.set(count.get().saturating_sub(1));
    }
}
