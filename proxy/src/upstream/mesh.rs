//! Connections to other proxies: HTTP/2 over mutual TLS, per peer and port, opened with the current identity.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
};

use http::{Request, Response};
use hyper::{
    body::{Body as _, Incoming},
    ext::Protocol,
};
use merlon_certs::{MERLON_H2, MeshTls};
use merlon_config::{
    live::Live,
    snapshot::{Destination, Endpoint},
};
use tokio::time::Instant;

use super::{
    balancer,
    body::RequestBody,
    dial, h2,
    pool_guard::PoolGuard,
    program::{Programs, copy_head, upstream_error},
};
use crate::{
    limits::Limits,
    protocol::{
        convert,
        denial::{Denial, Upstream},
        peer_header::{self, Proto},
        trace_context::Random,
        websocket,
    },
    telemetry::metrics::worker::WorkerMetrics,
};

/// Connections to other proxies, by address and identity.
#[derive(Debug)]
pub(crate) struct Peers {
    identity: Live<Option<Arc<MeshTls>>>,
    programs: Rc<Programs>,
    metrics: Arc<WorkerMetrics>,
    random: Rc<Random>,
    limits: Limits,
    peers: RefCell<HashMap<Endpoint, Rc<PeerConnections>, foldhash::fast::RandomState>>,
}

#[derive(Debug)]
struct PeerConnections {
    limits: Limits,
    /// By dialled address, of which there are few: a connection to one port may carry requests only for that port,
    /// which the other proxy enforces.
    ports: RefCell<Vec<(SocketAddr, Rc<PortConnections>)>>,
}

#[derive(Debug)]
struct PortConnections {
    group: h2::Group,
    failed: Cell<Option<Instant>>,
}

impl PeerConnections {
    fn new(limits: Limits) -> Self {
        Self {
            limits,
            ports: RefCell::default(),
        }
    }

    fn port(&self, address: SocketAddr) -> Rc<PortConnections> {
        let mut ports = self.ports.borrow_mut();
        if let Some((_, port_connections)) = ports.iter().find(|(known, _)| *known == address) {
            return Rc::clone(port_connections);
        }
        let port_connections = Rc::new(PortConnections {
            group: h2::Group::new(self.limits),
            failed: Cell::default(),
        });
        ports.push((address, Rc::clone(&port_connections)));
        port_connections
    }

    /// Streams open on all connections.
    fn streams(&self) -> usize {
        let ports = self.ports.borrow();
        ports
            .iter()
            .map(|(_, port_connections)| port_connections.group.streams())
            .sum()
    }

    /// Whether any state is left.
    fn tidy(&self, identity: Option<&Arc<MeshTls>>) -> bool {
        let mut ports = self.ports.borrow_mut();
        ports.retain(|(_, port_connections)| {
            port_connections.group.tidy(identity);
            !port_connections.group.is_empty()
                || dial::failed_recently(port_connections.failed.get(), &self.limits)
                || Rc::strong_count(port_connections) > 1
        });
        !ports.is_empty()
    }
}

/// Maximum number of endpoints per request.
const MAX_ATTEMPTS: usize = 3;

impl Peers {
    /// An empty pool. Endpoints without an identity are reached through `programs`.
    pub(crate) fn new(
        identity: Live<Option<Arc<MeshTls>>>,
        programs: Rc<Programs>,
        metrics: Arc<WorkerMetrics>,
        random: Rc<Random>,
        limits: Limits,
    ) -> Self {
        Self {
            identity,
            programs,
            metrics,
            random,
            limits,
            peers: RefCell::default(),
        }
    }

    fn peer(&self, endpoint: &Endpoint) -> Rc<PeerConnections> {
        if let Some(peer) = self.peers.borrow().get(endpoint) {
            return Rc::clone(peer);
        }
        let mut peers = self.peers.borrow_mut();
        let peer = peers.entry(endpoint.clone());
        Rc::clone(peer.or_insert_with(|| Rc::new(PeerConnections::new(self.limits))))
    }

    /// Selects an endpoint: the less busy of two random choices, skipping endpoints that failed recently.
    pub(crate) fn choose<'d>(
        &self,
        (destination, port): (&'d Destination, u16),
        tried: &[&Endpoint],
    ) -> Option<&'d Endpoint> {
        let endpoints = &destination.endpoints;
        if let [only] = endpoints.as_slice() {
            return tried.is_empty().then_some(only);
        }
        let left: Vec<(&Endpoint, Rc<PeerConnections>)> = endpoints
            .iter()
            .filter(|one| !tried.contains(one))
            .map(|one| (one, self.peer(one)))
            .collect();
        let failed_recently = |(one, peer): &(&Endpoint, Rc<PeerConnections>)| {
            dial::failed_recently(peer.port(one.dial(port)).failed.get(), &self.limits)
        };
        let chosen = balancer::choose(
            &left,
            failed_recently,
            |(_, peer)| peer.streams(),
            &self.random,
        );
        chosen.map(|(endpoint, _)| *endpoint)
    }

    /// Marks an endpoint as failed for a port.
    pub(crate) fn mark_failed(&self, endpoint: &Endpoint, port: u16) {
        let port_connections = self.peer(endpoint).port(endpoint.dial(port));
        port_connections.failed.set(Some(Instant::now()));
    }

    /// Sends a request to one of a destination's endpoints and waits for the head of the response. Another endpoint is
    /// tried only if nothing of the request was sent, or if it has no body and the other proxy reports that its program
    /// was not reached, for example in a terminating pod.
    ///
    /// # Errors
    /// When there is no response.
    pub(crate) async fn send(
        &self,
        (destination, port): (&Destination, u16),
        proto: Proto,
        request: Request<RequestBody>,
    ) -> Result<UpstreamResponse, Denial> {
        let mut tried: Vec<&Endpoint> = Vec::new();
        let mut request = request;
        let mut last = Upstream::NoEndpoint;
        let repeatable = destination.endpoints.len() > 1
            && request.body().is_end_stream()
            && request.extensions().get::<Protocol>().is_none();
        let mut unserved = None;
        while tried.len() < MAX_ATTEMPTS
            && let Some(endpoint) = self.choose((destination, port), &tried)
        {
            tried.push(endpoint);
            let address = endpoint.dial(port);
            let Some(expected) = &endpoint.identity else {
                let (response, pooled) = self
                    .programs
                    .send(
                        address,
                        proto,
                        strip_peer_header(request, proto, &self.random),
                        &self.metrics,
                    )
                    .await?;
                return Ok(UpstreamResponse {
                    response,
                    pooled,
                    address,
                    plain: true,
                });
            };
            let Some(identity) = self.identity.load().as_ref().clone() else {
                return Err(Denial::Unconfigured);
            };
            let port_connections = self.peer(endpoint).port(address);
            // The second attempt is for a connection that closed just before it was used.
            for _ in 0..2 {
                let dial = async || {
                    let stream = dial::mesh(
                        dial::dial_at(endpoint, port),
                        expected,
                        &identity,
                        MERLON_H2,
                        &self.limits,
                        &self.metrics,
                    )
                    .await?;
                    let until = dial::identity_gone(&self.identity);
                    h2::begin(stream, until, &self.limits).await
                };
                let lease = match port_connections.group.lease(Some(&identity), dial).await {
                    Ok(lease) => lease,
                    Err(error) => {
                        port_connections.failed.set(Some(Instant::now()));
                        last = error;
                        break;
                    }
                };
                let again = repeatable.then(|| copy_head(&request));
                match lease.send(request).await {
                    Ok(response) => {
                        let served = !response.headers().contains_key(peer_header::UNSERVED);
                        port_connections.failed.set((!served).then(Instant::now));
                        let pooled = PoolGuard::H2(lease);
                        let sent = UpstreamResponse {
                            response,
                            pooled,
                            address,
                            plain: false,
                        };
                        match again {
                            Some(again) if !served => {
                                request = again;
                                unserved = Some(sent);
                                break;
                            }
                            _ => return Ok(sent),
                        }
                    }
                    Err(mut failed) => match failed.take_message() {
                        Some(unsent) => request = unsent,
                        None => return Err(upstream_error(failed.error()).into()),
                    },
                }
                last = Upstream::Reset;
            }
        }
        // No other endpoint served it either: the caller gets the first response.
        unserved.map_or_else(|| Err(last.into()), Ok)
    }

    /// Removes connections that are closed, idle too long, or opened with an earlier certificate.
    pub(crate) fn tidy(&self, identity: Option<&Arc<MeshTls>>) {
        self.peers
            .borrow_mut()
            .retain(|_, peer| peer.tidy(identity) || Rc::strong_count(peer) > 1);
    }
}

/// A response, its origin, and what to return to the pool when it has passed.
#[derive(Debug)]
pub(crate) struct UpstreamResponse {
    pub(crate) response: Response<Incoming>,
    pub(crate) pooled: PoolGuard,
    pub(crate) address: SocketAddr,
    /// Whether it came without mesh TLS, in the program's own protocol.
    pub(crate) plain: bool,
}

/// Converts a request for an endpoint without a proxy: removes the header between proxies.
fn strip_peer_header(
    mut request: Request<RequestBody>,
    proto: Proto,
    random: &Random,
) -> Request<RequestBody> {
    request.headers_mut().remove(peer_header::NAME);
    if proto != Proto::Http1 {
        return request;
    }
    let switches = request.extensions().get::<Protocol>().is_some();
    let request = convert::as_http1(request);
    match switches {
        true => websocket::convert_request(request, Proto::Http1, random),
        false => request,
    }
}
