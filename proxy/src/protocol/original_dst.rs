//! The original destination of a redirected connection (`SO_ORIGINAL_DST`).

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use socket2::SockRef;
use tokio::net::TcpStream;

/// The original destination of a redirected connection; `None` when it was not redirected.
pub(crate) fn original_dst(stream: &TcpStream) -> Option<SocketAddr> {
    let socket = SockRef::from(stream);
    let found = match stream.local_addr().ok()?.ip().to_canonical() {
        IpAddr::V4(_) => socket.original_dst_v4(),
        IpAddr::V6(_) => socket.original_dst_v6(),
    };
    let address = found.ok()?.as_socket()?;
    let address = SocketAddr::new(address.ip().to_canonical(), address.port());
    // Without a redirect, some kernels return the socket's own address.
    (Some(address) != stream.local_addr().ok()).then_some(address)
}

/// The corresponding IPv6 address, for rules that redirect both families.
pub(crate) fn counterpart(address: SocketAddr) -> Option<SocketAddr> {
    let ip: IpAddr = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv6Addr::UNSPECIFIED.into(),
        IpAddr::V4(ip) if ip.is_loopback() => Ipv6Addr::LOCALHOST.into(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, address.port()))
}
