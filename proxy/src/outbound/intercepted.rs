//! Connections of the local program that the interception rules redirected to the proxy.
//!
//! The kernel keeps the original destination (`SO_ORIGINAL_DST`), and the control plane knows what is there. The
//! address decides, not the request: a `Host` header that names another service has no effect.

use std::{net::SocketAddr, rc::Rc};

use http::Version;
use merlon_config::{resource::OutboundMode, snapshot::AddressState};
use tokio::net::TcpStream;

use super::tcp;
use crate::{
    downstream::connection::OpenConnection,
    protocol::{denial::Denial, original_dst::original_dst},
    request::{exchange::Exchange, tunnel, worker_context::WorkerContext},
    state::destinations::LookupError,
    telemetry::metrics::{Direction, Transport},
    upstream::{dial, route::ServicePort},
};

/// Serves a connection of the local program to any destination.
pub(crate) async fn accept(local: Rc<WorkerContext>, stream: TcpStream, address: SocketAddr) {
    let Some(original_dst) = original_dst(&stream) else {
        tracing::debug!(%address, "downstream.not_intercepted");
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
    exchange.dst = Some(original_dst.to_string().into());
    exchange.current = Some(current);
    let found = match lookup_address(&local, original_dst).await {
        Ok(found) => found,
        Err(denial) => return exchange.refuse(denial),
    };
    match found {
        AddressState::Service {
            service,
            port,
            workload,
            also: _,
        } => {
            let service_port = ServicePort {
                service,
                port,
                workload,
                called: Some(original_dst),
            };
            tcp::forward_to(&local, stream, address, service_port, exchange).await;
        }
        AddressState::Closed => exchange.refuse(Denial::NoRoute(
            "the address belongs to a meshed workload that serves nothing on this port".into(),
        )),
        AddressState::Outside => forward_external(&local, stream, original_dst, exchange).await,
    }
}

/// Looks up an address, at the control plane if it is not in the snapshot. Connections to an unknown address are
/// refused; it is never treated as external.
async fn lookup_address(
    local: &WorkerContext,
    address: SocketAddr,
) -> Result<AddressState, Denial> {
    let current = local.current();
    let snapshot = current.snapshot().ok_or(Denial::Unconfigured)?;
    if let Some(found) = snapshot.addresses.get(&address) {
        return Ok(found.clone());
    }
    let lookup = local.shared.destinations.ask_address(address).await;
    lookup.map_err(|error| match error {
        LookupError::Unknown | LookupError::Unavailable => Denial::LookupUnavailable,
    })
}

/// Forwards a connection unchanged, if the mesh allows it.
async fn forward_external(
    local: &Rc<WorkerContext>,
    stream: TcpStream,
    original_dst: SocketAddr,
    mut exchange: Box<Exchange>,
) {
    let current = local.current();
    let Some(snapshot) = current.snapshot() else {
        return exchange.refuse(Denial::Unconfigured);
    };
    let allowed = snapshot.mesh.outbound != OutboundMode::Deny;
    let seen = &local.shared.egress;
    seen.called(&original_dst.to_string(), allowed, exchange.at);
    if !allowed {
        return exchange.refuse(Denial::Egress(original_dst.to_string().into()));
    }
    let _open = OpenConnection::new(local, Direction::Outbound, Transport::Plain);
    exchange.upstream = Some(original_dst);
    match dial::plain(
        original_dst,
        &local.shared.listeners,
        &local.shared.limits,
        &local.metrics,
    )
    .await
    {
        Ok(upstream) => tunnel::relay(stream, upstream, None, exchange).await,
        Err(error) => exchange.refuse(Denial::Upstream(error)),
    }
}
