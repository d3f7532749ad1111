//! Opaque TCP: a tunnel from a local address through mutual TLS to the destination program.
//!
//! On the wire a tunnel is ALPN `merlon-tcp/1`, a length in two bytes, and a [`Claim`] as text. Then both directions
//! carry the program's bytes, and each ends on its own.

use std::{net::SocketAddr, rc::Rc};

use http::Version;
use merlon_certs::MERLON_TCP;
use merlon_config::{
    resource::{AppProtocol, OutboundListener},
    snapshot::Destination,
};
use merlon_policy::principal::Principal;
use tokio::{io::AsyncWriteExt as _, net::TcpStream, task::JoinHandle};

use super::resolve;
use crate::{
    downstream::{
        connection::{self, OpenConnection},
        listener,
        listeners::{self, Wanted},
        peer::Peer,
    },
    outbound,
    protocol::{
        denial::{Denial, Upstream},
        peer_header::{Claim, Proto, preamble},
    },
    request::{exchange::Exchange, tunnel::relay, worker_context::WorkerContext},
    state::snapshot::Snapshot,
    telemetry::metrics::{Direction, Transport},
    upstream::{dial, route::ServicePort},
};

/// The listeners of the workload's `outbound` list.
impl Wanted for OutboundListener {
    const KIND: &'static str = "listeners of the workload";

    fn all(snapshot: &Snapshot) -> &[Self] {
        &snapshot.workload.outbound
    }

    fn name(&self) -> String {
        format!(
            "`outbound` to {}:{} ({})",
            self.service, self.port, self.listen
        )
    }

    fn open(&self, local: &Rc<WorkerContext>) -> Result<JoinHandle<()>, String> {
        let (socket, part) = listeners::socket(local, self.listen, &self.name())?;
        let (local, to) = (Rc::clone(local), Rc::new(self.clone()));
        Ok(tokio::task::spawn_local(async move {
            // Dropped in reverse order of declaration: the address is released after its socket is closed.
            let (_part, socket) = (part, socket);
            let connection =
                |local, stream, address| outbound(local, stream, address, Rc::clone(&to));
            listener::serve(&local, &socket, connection).await;
        }))
    }
}

/// Serves a connection of the local program to a local address that maps to one port of a Service.
async fn outbound(
    local: Rc<WorkerContext>,
    stream: TcpStream,
    address: SocketAddr,
    to: Rc<OutboundListener>,
) {
    let own = local.current().own();
    let mut exchange = Exchange::begin(&local, Direction::Outbound, own, address, Version::HTTP_11);
    exchange.protocol = "tcp";
    exchange.current = Some(local.current());
    let service_port = ServicePort {
        service: to.service.clone(),
        port: to.port,
        workload: None,
        called: None,
    };
    forward_to(&local, stream, address, service_port, exchange).await;
}

/// Forwards a connection of the local program to one port of a Service, as HTTP or as opaque TCP.
pub(crate) async fn forward_to(
    local: &Rc<WorkerContext>,
    stream: TcpStream,
    address: SocketAddr,
    service_port: ServicePort,
    mut exchange: Box<Exchange>,
) {
    exchange.dst = Some(format!("{}:{}", service_port.service, service_port.port).into());
    let destination = match resolve::pinned_destination(local, &service_port).await {
        Ok(destination) => destination,
        Err(denial) => return exchange.refuse(denial),
    };
    let mut ports = destination.ports.iter();
    match ports.find(|port| port.port == service_port.port) {
        None => exchange.refuse(Denial::NoRoute("the service has no such port".into())),
        Some(port) if port.protocol == AppProtocol::Tcp => {
            let _open = OpenConnection::new(local, Direction::Outbound, Transport::Plain);
            tunnel(local, stream, &destination, &service_port, exchange).await;
        }
        Some(_) => {
            exchange.discard();
            let mut peer = Peer::new(local, Direction::Outbound, address, Principal::Anonymous);
            peer.service_port = Some(service_port);
            connection::serve_plain(local, stream, Rc::new(peer), outbound::serve).await;
        }
    }
}

async fn tunnel(
    local: &Rc<WorkerContext>,
    stream: TcpStream,
    destination: &Destination,
    to: &ServicePort,
    mut exchange: Box<Exchange>,
) {
    let claim = Claim {
        service: to.service.clone(),
        port: to.port,
        proto: Proto::Tcp,
    };
    let (limits, metrics) = (&local.shared.limits, &local.metrics);
    let mut tried = Vec::new();
    let mut last = Denial::Upstream(Upstream::NoEndpoint);
    while tried.len() < 3
        && let Some(endpoint) = local.peers.choose((destination, to.port), &tried)
    {
        tried.push(endpoint);
        let address = dial::dial_at(endpoint, to.port);
        exchange.upstream = Some(address);
        let result = match &endpoint.identity {
            None => match dial::plain(address, &local.shared.listeners, limits, metrics).await {
                Ok(upstream) => return relay(stream, upstream, None, exchange).await,
                Err(error) => error,
            },
            Some(expected) => {
                let Some(identity) = local.identity() else {
                    return exchange.refuse(Denial::Unconfigured);
                };
                match dial::mesh(address, expected, &identity, MERLON_TCP, limits, metrics).await {
                    Ok(mut upstream) => {
                        if upstream.write_all(&preamble(&claim)).await.is_err()
                            || upstream.flush().await.is_err()
                        {
                            return exchange.refuse(Denial::Upstream(Upstream::Reset));
                        }
                        return relay(stream, upstream, None, exchange).await;
                    }
                    Err(error) => error,
                }
            }
        };
        local.peers.mark_failed(endpoint, to.port);
        last = Denial::Upstream(result);
    }
    exchange.refuse(last);
}
