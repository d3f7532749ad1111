//! The listeners of the snapshot: opened, closed and retried in each worker, and reported by `/ready`.

use std::{io, rc::Rc, time::Duration};

use merlon_net::backoff::Backoff;
use tokio::{net::TcpListener, task::JoinHandle, time};

use crate::{
    protocol::{address_claims::AddressGuard, sockets::adopt},
    request::worker_context::WorkerContext,
    state::{readiness::Unready, snapshot::Snapshot},
};

/// The back-off before an address that could not be bound is tried again.
const MIN_RETRY: Duration = Duration::from_millis(100);
const MAX_RETRY: Duration = Duration::from_secs(5);

/// A listener as the snapshot describes it.
pub(crate) trait Wanted: Clone + PartialEq {
    /// The name of this kind of listener in `/ready`, until the first are open.
    const KIND: &'static str;

    /// All listeners of the snapshot.
    fn all(snapshot: &Snapshot) -> &[Self];

    /// Its name and address, for messages.
    fn name(&self) -> String;

    /// Opens it. The error contains the problem and how to fix it.
    fn open(&self, local: &Rc<WorkerContext>) -> Result<JoinHandle<()>, String>;
}

/// Opens and closes listeners as the snapshot changes, and retries those that could not be opened.
pub(crate) async fn keep<W: Wanted>(local: Rc<WorkerContext>) {
    let mut changes = local.shared.snapshot.watch();
    let mut open: Vec<(W, JoinHandle<()>)> = Vec::new();
    let mut failed: Vec<String> = Vec::new();
    let mut backoff = Backoff::new(MIN_RETRY, MAX_RETRY);
    let health = &local.shared.readiness;
    let part = |name: &str| format!("worker {}: {name}", local.index);
    loop {
        let current = local.current();
        let wanted = current.snapshot().map(|snapshot| W::all(snapshot));
        let wanted = wanted.unwrap_or_default();
        open.retain(|(listener, task)| {
            let keep = wanted.contains(listener) && !task.is_finished();
            if !keep {
                task.abort();
            }
            keep
        });
        // An aborted listener's socket closes when its task is next polled; before that its address is in use.
        tokio::task::yield_now().await;
        let before = std::mem::take(&mut failed);
        for listener in wanted {
            if open.iter().any(|(known, _)| known == listener) {
                continue;
            }
            let name = listener.name();
            match listener.open(&local) {
                Ok(task) => open.push((listener.clone(), task)),
                Err(problem) => {
                    if health.add_part_reason(
                        Unready::Listener,
                        &part(&name),
                        format!("{name}: {problem}"),
                    ) {
                        tracing::warn!(listener = name, error = problem, "listener.open_failed");
                    }
                    failed.push(name);
                }
            }
        }
        for name in before.iter().filter(|name| !failed.contains(name)) {
            if health.remove_part_reason(Unready::Listener, &part(name)) {
                tracing::info!(listener = name, "listener.recovered");
            }
        }
        if current.snapshot().is_some() {
            health.remove_part_reason(Unready::Listener, &unopened(local.index, W::KIND));
        }
        tokio::select! {
            changed = changes.changed() => match changed {
                Ok(()) => backoff.reset(),
                Err(_) => return,
            },
            () = time::sleep(backoff.next_wait()), if !failed.is_empty() => {}
        }
    }
}

/// The name in `/ready` of a worker that has not opened its listeners yet.
pub(crate) fn unopened(worker: usize, kind: &str) -> String {
    format!("worker {worker}: {kind}")
}

/// Opens this worker's socket on an address, and claims the address.
pub(crate) fn socket(
    local: &WorkerContext,
    address: std::net::SocketAddr,
    name: &str,
) -> Result<(TcpListener, AddressGuard), String> {
    let (socket, part) = local
        .shared
        .listeners
        .listen(address, name)
        .map_err(|error| format!("{error}; {}", remedy(&error)))?;
    let socket = adopt(socket).ok_or("the socket cannot be registered with the runtime")?;
    Ok((socket, part))
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "stop the other listener, or change the port of one of the two",
        io::ErrorKind::PermissionDenied => {
            "use a port of 1024 or above, or grant the process CAP_NET_BIND_SERVICE"
        }
        io::ErrorKind::AddrNotAvailable => "use an address of this machine",
        _ => "see the error",
    }
}
