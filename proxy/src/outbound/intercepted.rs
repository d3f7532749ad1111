//! Connections that the network's rules led here instead of where their program meant them to go.
//!
//! The kernel remembers where that was (`SO_ORIGINAL_DST`), and the control plane knows what is there. The address
//! decides, and nothing that the program says: a `Host` of another service does not lead there.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use http::Version;
use merlon_config::{
    resource::{AppProtocol, OutboundMode},
    snapshot::{AddressState, Destination, Endpoint},
};
use merlon_policy::principal::Principal;
use socket2::SockRef;
use tokio::{net::TcpStream, time::timeout};

use super::{
    resolve::{self, Fixed},
    tcp,
};
use crate::{
    downstream::{connection, listener::Open},
    inbound::{self, Peer},
    protocol::denial::Denial,
    request::exchange::Exchange,
    state::destinations::AskError,
    telemetry::metrics::{Direction, Transport},
    upstream::dial,
    worker::Local,
};

/// Where a connection was meant to go; none for one that no rule led here.
fn meant(stream: &TcpStream) -> Option<SocketAddr> {
    let socket = SockRef::from(stream);
    let found = match stream.local_addr().ok()?.ip().to_canonical() {
        IpAddr::V4(_) => socket.original_dst_v4(),
        IpAddr::V6(_) => socket.original_dst_v6(),
    };
    let address = found.ok()?.as_socket()?;
    let address = SocketAddr::new(address.ip().to_canonical(), address.port());
    // Where nothing was rewritten, some kernels name the socket's own address.
    (Some(address) != stream.local_addr().ok()).then_some(address)
}

/// A connection of the own program to anywhere.
pub(crate) async fn outbound(local: Rc<Local>, stream: TcpStream, address: SocketAddr) {
    let Some(meant) = meant(&stream) else {
        tracing::debug!(%address, "closed: no rule led this connection here");
        return;
    };
    let current = local.current();
    let mut exchange = Exchange::begin(
        &local,
        Direction::Outbound,
        current.own(),
        address,
        Version::HTTP_11,
    );
    exchange.protocol = "tcp";
    exchange.dst = Some(meant.to_string().into());
    exchange.current = Some(current);
    let found = match at(&local, meant).await {
        Ok(found) => found,
        Err(denial) => return exchange.refused(denial),
    };
    match found {
        AddressState::Service {
            service,
            port,
            workload,
            also: _,
        } => {
            let fixed = Fixed {
                service,
                port,
                workload,
                called: Some(meant),
            };
            tcp::lead(&local, stream, address, fixed, exchange).await;
        }
        AddressState::Closed => exchange.refused(Denial::NoRoute(
            "somebody of the mesh is there, who serves nothing on this port".into(),
        )),
        AddressState::Outside => outside(&local, stream, meant, exchange).await,
    }
}

/// What is at an address, asked for when it is called for the first time. Nobody counts as outside of whom that is not
/// known.
async fn at(local: &Local, address: SocketAddr) -> Result<AddressState, Denial> {
    let current = local.current();
    let snapshot = current.snapshot().ok_or(Denial::Unconfigured)?;
    if let Some(found) = snapshot.addresses.get(&address) {
        return Ok(found.clone());
    }
    let asked = local.shared.destinations.ask_address(address).await;
    asked.map_err(|error| match error {
        AskError::Unknown | AskError::Unavailable => Denial::Unasked,
    })
}

/// Passes a connection on as it is, where the mesh lets it.
async fn outside(
    local: &Rc<Local>,
    stream: TcpStream,
    meant: SocketAddr,
    mut exchange: Box<Exchange>,
) {
    let current = local.current();
    let Some(snapshot) = current.snapshot() else {
        return exchange.refused(Denial::Unconfigured);
    };
    let passes = snapshot.mesh.outbound != OutboundMode::Deny;
    let seen = &local.shared.outside;
    seen.called(&meant.to_string(), passes, exchange.at);
    if !passes {
        return exchange.refused(Denial::Egress);
    }
    let _open = Open::new(local, Direction::Outbound, Transport::Plain);
    exchange.upstream = Some(meant);
    match dial::connect(meant, &local.metrics).await {
        Ok(upstream) => tcp::carry(stream, upstream, None, exchange).await,
        Err(error) => exchange.refused(Denial::Upstream(error)),
    }
}

/// Until the first byte of a caller that may be in plain. Who waits for the server to speak is not.
const FIRST_BYTE: Duration = Duration::from_secs(5);
/// The first byte of a TLS record that carries a handshake (RFC 8446 §5.1).
const HANDSHAKE: u8 = 22;

/// A connection to this workload, from another proxy or, where that is permitted, from somebody in plain.
pub(crate) async fn inbound(local: Rc<Local>, stream: TcpStream, address: SocketAddr) {
    let permissive = {
        let current = local.current();
        let snapshot = current.snapshot();
        snapshot.is_some_and(|snapshot| snapshot.workload.permissive)
    };
    let port = meant(&stream).map(|meant| meant.port());
    let (true, Some(port)) = (permissive, port) else {
        return inbound::led(local, stream, address, port).await;
    };
    let speaks_first = local.current().snapshot().is_some_and(|snapshot| {
        let mut services = snapshot.services_on(port);
        services.any(|service| {
            let mut ports = service.state.ports.iter();
            ports.any(|own| own.target_port == port && own.protocol == AppProtocol::Tcp)
        })
    });
    let mut first = [0];
    match timeout(FIRST_BYTE, stream.peek(&mut first)).await {
        Ok(Ok(1)) if first == [HANDSHAKE] => {
            inbound::led(local, stream, address, Some(port)).await;
        }
        Ok(Ok(1)) => plain(&local, stream, address, port).await,
        // A server's turn to speak, as with PostgreSQL before TLS or MySQL.
        Err(_) if speaks_first => plain(&local, stream, address, port).await,
        _ => {}
    }
}

/// Somebody without mutual TLS, under the same policies as anyone, as `Anonymous`.
async fn plain(local: &Rc<Local>, stream: TcpStream, address: SocketAddr, port: u16) {
    let mut peer = Peer::new(local, Direction::Inbound, address, Principal::Anonymous);
    peer.program_port = Some(port);
    let peer = Rc::new(peer);
    let current = local.current();
    let service = current.snapshot().and_then(|snapshot| {
        let mut services = snapshot.services_on(port);
        services.next().map(Arc::clone)
    });
    let protocol = service.and_then(|service| {
        let mut ports = service.state.ports.iter();
        let own = ports.find(|own| own.target_port == port)?;
        Some((service.state.name.clone(), own.port, own.protocol))
    });
    match protocol {
        Some((name, port, AppProtocol::Tcp)) => tcp::plain(&peer, stream, name, port).await,
        Some(_) => connection::serve_plain(local, stream, peer, inbound::serve).await,
        None => {
            tracing::debug!(%address, port, "closed: nothing of the mesh is served on this port")
        }
    }
}

/// Where to dial an endpoint for a port. Our own pod is not reached by its program's port: nothing intercepts what a
/// pod says to itself, so the program would be spoken to in the mesh's TLS.
pub(crate) fn dial_at(endpoint: &Endpoint, port: u16) -> SocketAddr {
    let address = endpoint.dial(port);
    if address != endpoint.address && is_own(address.ip()) {
        return endpoint.address;
    }
    address
}

/// Whether an address is this host's: the kernel would answer from the very same.
fn is_own(address: IpAddr) -> bool {
    let any: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // Sends nothing: it only has the kernel choose a route.
    let from = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((address, 9))?;
        socket.local_addr()
    });
    from.is_ok_and(|from| from.ip() == address)
}

/// The same address of the other family, for rules that lead both families here.
pub(crate) fn counterpart(address: SocketAddr) -> Option<SocketAddr> {
    let ip: IpAddr = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv6Addr::UNSPECIFIED.into(),
        IpAddr::V4(ip) if ip.is_loopback() => Ipv6Addr::LOCALHOST.into(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, address.port()))
}

/// The destination that is meant, of one that was called at its own address that one alone.
pub(crate) async fn destination(local: &Local, fixed: &Fixed) -> Result<Arc<Destination>, Denial> {
    let found = resolve::destination(local, &fixed.service).await?;
    let Some(workload) = fixed.workload else {
        return Ok(found);
    };
    let mut only = (*found).clone();
    only.endpoints
        .retain(|endpoint| endpoint.address.ip() == workload);
    Ok(Arc::new(only))
}
