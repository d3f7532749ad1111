//! One worker: a thread, its listeners, its pools and caches. A request never leaves it and takes no lock.

use std::{net::TcpListener, rc::Rc, sync::Arc, time::Duration};

use merlon_config::resource::OutboundListener;
use tokio::task::JoinHandle;

use crate::{
    downstream::{listener, listeners},
    inbound, outbound,
    protocol::sockets,
    request::worker_context::WorkerContext,
    state::{
        gateway_ports::Port,
        shared::{Shared, Shutdown},
    },
    telemetry::{access_log::AccessLog, metrics::worker::WorkerMetrics},
};

/// Serves until the shutdown. Runs on its own thread, within a [`tokio::task::LocalSet`].
pub(crate) async fn run(worker: Worker) {
    let log = AccessLog::stdout(&worker.shared.limits);
    run_with_log(worker, log).await;
}

/// Like [`run`], with the given access log.
pub(crate) async fn run_with_log(worker: Worker, log: AccessLog) {
    let Worker {
        index,
        shared,
        metrics,
        inbound,
        outbound,
        interception,
        shutdown,
    } = worker;
    let local = Rc::new(WorkerContext::new(index, shared, metrics, log, shutdown));
    tracing::debug!(index, "worker.started");
    let mut tasks = vec![
        spawn(tidy(Rc::clone(&local))),
        spawn(follow(Rc::clone(&local))),
        spawn(expire(Rc::clone(&local))),
    ];
    for listener in inbound.into_iter().filter_map(sockets::adopt) {
        let local = Rc::clone(&local);
        tasks.push(spawn(async move {
            match interception {
                true => listener::serve(&local, &listener, inbound::intercepted::accept).await,
                false => listener::serve(&local, &listener, inbound::connection).await,
            }
        }));
    }
    for listener in outbound.into_iter().filter_map(sockets::adopt) {
        let local = Rc::clone(&local);
        tasks.push(spawn(async move {
            match interception {
                true => listener::serve(&local, &listener, outbound::intercepted::accept).await,
                false => listener::serve(&local, &listener, outbound::connection).await,
            }
        }));
    }
    tasks.push(spawn(listeners::keep::<OutboundListener>(Rc::clone(
        &local,
    ))));
    tasks.push(spawn(listeners::keep::<Port>(Rc::clone(&local))));
    local.shutdown.drain.cancelled().await;
    tokio::select! {
        () = local.quiet() => {}
        () = local.shutdown.end.cancelled() => {}
    }
    for task in tasks {
        task.abort();
    }
    local.log.flush();
    tracing::debug!(index, "worker.ended");
}

fn spawn(task: impl Future<Output = ()> + 'static) -> JoinHandle<()> {
    tokio::task::spawn_local(task)
}

/// Re-evaluates open connections and requests on every new snapshot.
async fn follow(local: Rc<WorkerContext>) {
    let mut changes = local.shared.snapshot.watch();
    while changes.changed().await.is_ok() {
        local.decide_again();
    }
}

/// Closes connections and requests within a second after their token expires.
async fn expire(local: Rc<WorkerContext>) {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        local.expire();
    }
}

async fn tidy(local: Rc<WorkerContext>) {
    let interval = local.shared.limits.tidy_interval;
    let mut identities = local.shared.identity.watch();
    loop {
        tokio::select! {
            // Connections of an earlier certificate leave the pool at once; each ends with its last stream.
            _ = identities.changed() => {}
            () = tokio::time::sleep(interval) => {}
        }
        local.programs.tidy();
        local.peers.tidy(local.identity().as_ref());
        local.tokens.tidy();
        local.tidy_open();
    }
}

/// The input of a worker thread.
#[derive(Debug)]
pub(crate) struct Worker {
    /// Counted from 0.
    pub index: usize,
    /// State that all workers share.
    pub shared: Arc<Shared>,
    /// Counters of this worker; a scrape adds up all workers.
    pub metrics: Arc<WorkerMetrics>,
    /// Listeners for other proxies: bound with `SO_REUSEPORT`, non-blocking. Empty in a gateway.
    pub inbound: Vec<TcpListener>,
    /// Listeners for requests of the local program, bound the same way. Empty in a gateway.
    pub outbound: Vec<TcpListener>,
    /// Whether network rules redirect connections with other destinations here.
    pub interception: bool,
    /// When to drain and when to end.
    pub shutdown: Shutdown,
}
