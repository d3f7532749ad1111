//! The accept loop: bounded, and resilient to errors.

use std::{io, net::SocketAddr, rc::Rc, time::Duration};

use socket2::TcpKeepalive;
use tokio::net::{TcpListener, TcpStream};

use crate::request::worker_context::{ConnectionGuard, WorkerContext};

/// A source of connections.
pub(crate) trait Accept {
    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)>;
}

impl Accept for TcpListener {
    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        Self::accept(self).await
    }
}

/// Accepts until the drain starts, with a task for each connection.
pub(crate) async fn serve<F>(
    local: &Rc<WorkerContext>,
    listener: &impl Accept,
    connection: impl Fn(Rc<WorkerContext>, TcpStream, SocketAddr) -> F,
) where
    F: Future<Output = ()> + 'static,
{
    let limits = &local.shared.limits;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = local.shutdown.drain.cancelled() => return,
        };
        match accepted {
            Ok((stream, address)) => {
                if local.connections() >= limits.connections {
                    local.metrics.accept_errors.inc();
                    continue;
                }
                set_socket_options(&stream);
                let guard = ConnectionGuard::new(local);
                let task = connection(Rc::clone(local), stream, address);
                tokio::task::spawn_local(async move {
                    task.await;
                    drop(guard);
                });
            }
            Err(error) => {
                // A reset concerns only one client; all other errors may be temporary.
                local.metrics.accept_errors.inc();
                if error.kind() != io::ErrorKind::ConnectionAborted {
                    tracing::warn!(%error, "accept.failed");
                    tokio::time::sleep(limits.accept_pause).await;
                }
            }
        }
    }
}

/// Sends small requests without delay, and detects vanished peers.
fn set_socket_options(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(30))
        .with_interval(Duration::from_secs(10))
        .with_retries(3);
    let _ = socket2::SockRef::from(stream).set_tcp_keepalive(&keepalive);
}
