//! Stub.
use socket2::{Domain, Protocol, Socket, Type};
use std::{io, net::SocketAddr};
/// Stub.
pub fn bind_all(address: SocketAddr, workers: usize) -> io::Result<Vec<std::net::TcpListener>> {
    let one = |address: SocketAddr| {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(1024)?;
        Ok::<std::net::TcpListener, io::Error>(socket.into())
    };
    let first = one(address)?;
    let address = first.local_addr()?;
    let mut all = vec![first];
    for _ in 1..workers {
        all.push(one(address)?);
    }
    Ok(all)
}
