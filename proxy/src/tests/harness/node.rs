use std::{net::SocketAddr, rc::Rc, sync::Arc};

use merlon_certs::MeshTls;
use merlon_config::live::Live;
use merlon_test_support::ports;
use tokio::{net::TcpListener, task::JoinHandle};

use super::{Log, State};
use crate::{
    config::AccessLogMode,
    inbound,
    limits::Limits,
    protocol::{address_claims::Claims, sockets},
    request::worker_context::WorkerContext,
    state::{
        destinations::Destinations,
        jwks_cache::JwksCache,
        readiness::Readiness,
        shared::{Shared, Shutdown},
    },
    telemetry::{
        access_log::AccessLog, decision_log::DecisionLog, metrics::worker::WorkerMetrics,
        spans::Spans,
    },
    worker::{self, Worker},
};

/// A worker with its listeners, on the test's thread.
pub(crate) struct Node {
    pub(crate) shared: Arc<Shared>,
    pub(crate) metrics: Arc<WorkerMetrics>,
    pub(crate) inbound: SocketAddr,
    pub(crate) outbound: SocketAddr,
    pub(crate) log: Log,
    pub(crate) shutdown: Shutdown,
    /// The worker's main task: it ends when the shutdown is complete.
    pub(crate) worker: JoinHandle<()>,
    /// Receiver of JWKS refetch requests; kept open, never answered.
    _refetches: Box<dyn std::any::Any>,
}

impl Node {
    pub(crate) fn start(identity: Option<Arc<MeshTls>>, state: &State) -> Self {
        Self::with_limits(identity, state, Limits::default())
    }

    /// As [`Node::start`], with other bounds and time limits.
    pub(crate) fn with_limits(
        identity: Option<Arc<MeshTls>>,
        state: &State,
        limits: Limits,
    ) -> Self {
        Self::with(identity, state, limits, AccessLogMode::All)
    }

    /// As [`Node::start`], with these requests in its access log.
    pub(crate) fn with(
        identity: Option<Arc<MeshTls>>,
        state: &State,
        limits: Limits,
        access_log: AccessLogMode,
    ) -> Self {
        let (destinations, mut lookups) = Destinations::new(&limits);
        let (keys, refetches) = JwksCache::new(&limits);
        let metrics = Arc::new(WorkerMetrics::default());
        let shared = Arc::new(Shared {
            snapshot: Live::new(Some(Arc::new(state.compile()))),
            has_identity: identity.is_some(),
            interception: false,
            identity: Live::new(identity),
            keys,
            destinations,
            decisions: DecisionLog::new(state.identity, &limits),
            egress: crate::telemetry::egress_log::EgressLog::default(),
            spans: Spans::default(),
            listeners: Claims::default(),
            readiness: Readiness::default(),
            access_log,
            limits,
        });
        // The snapshot has every destination: all lookups fail.
        tokio::task::spawn_local(async move {
            while let Some(lookup) = lookups.recv().await {
                let _ = lookup
                    .reply
                    .send(Err(crate::state::destinations::LookupError::Unknown));
            }
        });
        // Not port 0: no other test listens on these ports after the node has closed them.
        let [inbound, outbound] = [ports::free(), ports::free()]
            .map(|address| sockets::bind_all(address, 1).unwrap().remove(0));
        let log = Log::default();
        let addresses = [&inbound, &outbound].map(|one| one.local_addr().unwrap());
        shared.listeners.set_of_process(addresses.to_vec());
        let shutdown = Shutdown::default();
        let worker = Worker {
            index: 0,
            shared: Arc::clone(&shared),
            metrics: Arc::clone(&metrics),
            inbound: vec![inbound],
            outbound: vec![outbound],
            interception: false,
            shutdown: shutdown.clone(),
        };
        let log_to = AccessLog::to(log.clone(), &limits);
        Self {
            shared,
            metrics,
            inbound: addresses[0],
            outbound: addresses[1],
            log,
            shutdown,
            worker: tokio::task::spawn_local(worker::run_with_log(worker, log_to)),
            _refetches: Box::new(refetches),
        }
    }

    /// The context of another worker of the node.
    pub(crate) fn context(&self) -> Rc<WorkerContext> {
        Rc::new(WorkerContext::new(
            0,
            Arc::clone(&self.shared),
            Arc::clone(&self.metrics),
            AccessLog::to(self.log.clone(), &self.shared.limits),
            self.shutdown.clone(),
        ))
    }

    /// An address whose connections reach the node as if an interception rule had redirected them from a port of the
    /// program.
    pub(crate) async fn redirected_from(&self, port: u16) -> SocketAddr {
        // Not 127.0.0.1: a caller dials its own address at the proxy's port.
        let listener = TcpListener::bind("127.0.0.2:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let local = self.context();
        tokio::task::spawn_local(async move {
            while let Ok((stream, from)) = listener.accept().await {
                let redirected =
                    inbound::handle_redirected(Rc::clone(&local), stream, from, Some(port));
                tokio::task::spawn_local(redirected);
            }
        });
        address
    }

    /// Publishes `state` as the current snapshot.
    pub(crate) fn apply(&self, state: &State) {
        self.shared
            .snapshot
            .publish(Some(Arc::new(state.compile())));
    }
}
