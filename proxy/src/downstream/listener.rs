//! Accepting connections: bounded, and never given up.

use std::{io, net::SocketAddr, rc::Rc, time::Duration};

use socket2::TcpKeepalive;
use tokio::net::{TcpListener, TcpStream};

use crate::request::local::WorkerContext;

/// Connections that one worker keeps open; more are closed at once.
const CONNECTIONS: usize = 10_000;
/// How long accepting pauses when the system is short of something (files, memory).
const PAUSE: Duration = Duration::from_millis(100);

/// Accepts until the drain begins, and gives each connection to a task of its own.
pub(crate) async fn serve<F>(
    local: &Rc<WorkerContext>,
    listener: &TcpListener,
    connection: impl Fn(Rc<WorkerContext>, TcpStream, SocketAddr) -> F,
) where
    F: Future<Output = ()> + 'static,
{
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = local.shutdown.drain.cancelled() => return,
        };
        match accepted {
            Ok((stream, address)) => {
                if local.connections() >= CONNECTIONS {
                    local.metrics.accept_errors.inc();
                    continue;
                }
                prepare(&stream);
                let counted = ConnectionGuard::new(local);
                let task = connection(Rc::clone(local), stream, address);
                tokio::task::spawn_local(async move {
                    task.await;
                    drop(counted);
                });
            }
            Err(error) => {
                // One client's reset concerns nobody else; everything else may pass.
                local.metrics.accept_errors.inc();
                if error.kind() != io::ErrorKind::ConnectionAborted {
                    tracing::warn!(%error, "accept.failed");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

/// Small requests go out at once, and a peer that vanished is found out.
fn prepare(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(30))
        .with_interval(Duration::from_secs(10))
        .with_retries(3);
    let _ = socket2::SockRef::from(stream).set_tcp_keepalive(&keepalive);
}

struct ConnectionGuard(Rc<WorkerContext>);

impl ConnectionGuard {
    fn new(local: &Rc<WorkerContext>) -> Self {
        local.connection_opened();
        Self(Rc::clone(local))
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.0.connection_closed();
    }
}
