//! Redirected connections to the local program.

use std::{net::SocketAddr, rc::Rc, sync::Arc};

use merlon_config::resource::AppProtocol;
use merlon_policy::principal::Principal;
use tokio::{net::TcpStream, time::timeout};

use super::tcp;
use crate::{
    downstream::{connection, peer::Peer},
    inbound,
    protocol::original_dst::original_dst,
    request::worker_context::WorkerContext,
    telemetry::metrics::Direction,
};

/// The first byte of a TLS record that carries a handshake (RFC 8446 §5.1).
pub(crate) const TLS_HANDSHAKE_RECORD: u8 = 22;

/// Serves a connection to this workload, from another proxy or, in a permissive namespace, from a client in plain text.
pub(crate) async fn accept(local: Rc<WorkerContext>, stream: TcpStream, address: SocketAddr) {
    let permissive = {
        let current = local.current();
        let snapshot = current.snapshot();
        snapshot.is_some_and(|snapshot| snapshot.workload.permissive)
    };
    let port = original_dst(&stream).map(|original_dst| original_dst.port());
    let (true, Some(port)) = (permissive, port) else {
        return inbound::handle_redirected(local, stream, address, port).await;
    };
    let speaks_first = local.current().snapshot().is_some_and(|snapshot| {
        let mut services = snapshot.services_on(port);
        services.any(|service| {
            let mut ports = service.state.ports.iter();
            ports.any(|own| own.target_port == port && own.protocol == AppProtocol::Tcp)
        })
    });
    let mut first = [0];
    match timeout(
        local.shared.limits.first_byte_timeout,
        stream.peek(&mut first),
    )
    .await
    {
        Ok(Ok(1)) if first == [TLS_HANDSHAKE_RECORD] => {
            inbound::handle_redirected(local, stream, address, Some(port)).await;
        }
        Ok(Ok(1)) => serve_plain_text(&local, stream, address, port).await,
        // In protocols such as MySQL the server speaks first.
        Err(_) if speaks_first => serve_plain_text(&local, stream, address, port).await,
        _ => {}
    }
}

/// Serves a client without mutual TLS, as `Anonymous` under the same policies.
pub(crate) async fn serve_plain_text(
    local: &Rc<WorkerContext>,
    stream: TcpStream,
    address: SocketAddr,
    port: u16,
) {
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
        Some((name, port, AppProtocol::Tcp)) => {
            tcp::serve_plain_text(&peer, stream, name, port).await
        }
        Some(_) => connection::serve_plain(local, stream, peer, inbound::serve).await,
        None => {
            tracing::debug!(%address, port, "downstream.port_unknown")
        }
    }
}
