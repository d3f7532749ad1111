//! Accepting connections: bounded, and never given up.

use std::{io, net::SocketAddr, rc::Rc, time::Duration};

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};

pub use crate::protocol::address_claims::Claims;
pub(crate) use crate::protocol::address_claims::Part;
use crate::{
    telemetry::metrics::{Direction, Transport},
    worker::Local,
};

/// Connections that one worker keeps open; more are closed at once.
const CONNECTIONS: usize = 10_000;
/// How long accepting pauses when the system is short of something (files, memory).
const PAUSE: Duration = Duration::from_millis(100);
const BACKLOG: i32 = 1_024;

/// Listens on `address` as the first of this process. Non-blocking.
///
/// Without `SO_REUSEPORT` the kernel refuses an address on which anyone listens, in whatever way: of two processes that
/// begin at once it gives the address to one. Set afterwards, it lets in those that [`join`].
///
/// # Errors
/// The address cannot be had, also where another process listens on it with `SO_REUSEPORT`: the kernel would give each
/// of the two some of the connections, and nobody would notice.
pub(crate) fn claim(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = socket(address)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_reuse_port(true)?;
    Ok(socket.into())
}

/// Listens on an address that was claimed, beside the workers that do already. Non-blocking.
///
/// # Errors
/// The address cannot be had.
pub(crate) fn join(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = socket(address)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Listens on `address` once for each of `workers`; port 0 becomes one port for all.
///
/// # Errors
/// The address cannot be had, also where another process listens on it, in whatever way.
pub fn bind_all(address: SocketAddr, workers: usize) -> io::Result<Vec<std::net::TcpListener>> {
    let first = claim(address)?;
    let address = first.local_addr()?;
    let mut all = vec![first];
    for _ in 1..workers {
        all.push(join(address)?);
    }
    Ok(all)
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

/// Hands a listener to this worker's runtime.
pub(crate) fn adopt(listener: std::net::TcpListener) -> Option<TcpListener> {
    match TcpListener::from_std(listener) {
        Ok(listener) => Some(listener),
        Err(error) => {
            tracing::error!(%error, "a listener cannot be served");
            None
        }
    }
}

/// Accepts until the drain begins, and gives each connection to a task of its own.
pub(crate) async fn serve<F>(
    local: &Rc<Local>,
    listener: &TcpListener,
    connection: impl Fn(Rc<Local>, TcpStream, SocketAddr) -> F,
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
                let counted = Counted::new(local);
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
                    tracing::warn!(%error, "accepting pauses");
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

struct Counted(Rc<Local>);

impl Counted {
    fn new(local: &Rc<Local>) -> Self {
        local.connection_opened();
        Self(Rc::clone(local))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connection_closed();
    }
}

/// Counts a connection for as long as it is open.
#[derive(Debug)]
pub(crate) struct Open {
    local: Rc<Local>,
    direction: Direction,
}

impl Open {
    pub(crate) fn new(local: &Rc<Local>, direction: Direction, transport: Transport) -> Self {
        local.metrics.connections.inc(direction, transport);
        local.metrics.open_connections.add(direction, 1);
        Self {
            local: Rc::clone(local),
            direction,
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.local.metrics.open_connections.add(self.direction, -1);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn workers_share_an_address_that_nobody_else_gets() {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let ours = bind_all(any, 3).unwrap();
        let address = ours[0].local_addr().unwrap();
        assert!(ours.iter().all(|one| one.local_addr().unwrap() == address));
        let error = bind_all(address, 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        drop(ours);
        assert_eq!(bind_all(address, 2).unwrap().len(), 2);
    }
}
