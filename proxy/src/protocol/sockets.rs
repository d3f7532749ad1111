//! Listening sockets: claimed once per process, joined by each worker (`SO_REUSEPORT`).

use std::{io, net::SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

pub(crate) const BACKLOG: i32 = 1_024;

/// Opens the first listener of this process on `address`. Non-blocking.
///
/// Without `SO_REUSEPORT` the kernel refuses an address that is in use, whatever options the other socket has: of two
/// processes that start at once, one gets the address. Setting the option afterwards allows further sockets to
/// [`join`].
///
/// # Errors
/// The address cannot be bound, even when another process listens on it with `SO_REUSEPORT`: the kernel would
/// distribute connections over both processes, unnoticed.
pub(crate) fn claim(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = socket(address)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_reuse_port(true)?;
    Ok(socket.into())
}

/// Opens a further listener on an address that this process has claimed. Non-blocking.
///
/// # Errors
/// The address cannot be bound.
pub(crate) fn join(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = socket(address)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Opens one listener on `address` for each of `workers`; for port 0 all share one chosen port.
///
/// # Errors
/// The address cannot be bound, or another process listens on it, with any options.
pub(crate) fn bind_all(
    address: SocketAddr,
    workers: usize,
) -> io::Result<Vec<std::net::TcpListener>> {
    let first = claim(address)?;
    let address = first.local_addr()?;
    let mut all = vec![first];
    for _ in 1..workers {
        all.push(join(address)?);
    }
    Ok(all)
}

pub(crate) fn socket(address: SocketAddr) -> io::Result<Socket> {
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

/// Registers a listener with this worker's runtime.
pub(crate) fn adopt(listener: std::net::TcpListener) -> Option<TcpListener> {
    match TcpListener::from_std(listener) {
        Ok(listener) => Some(listener),
        Err(error) => {
            tracing::error!(%error, "listener.failed");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn workers_share_an_address_that_no_other_process_can_bind() {
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
