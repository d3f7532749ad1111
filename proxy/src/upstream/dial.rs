//! Opening connections, each within its time.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use merlon_certs::MeshTls;
use merlon_config::{live::Live, name::SpiffeId, snapshot::Endpoint};
use rustls_pki_types::ServerName;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    protocol::denial::Upstream,
    telemetry::metrics::{Direction, FetchResult, Handshake, worker::WorkerMetrics},
};

/// A peer that does not answer is told from a slow one quickly: callers wait this long at most before another is tried.
const CONNECT: Duration = Duration::from_secs(1);
const HANDSHAKE: Duration = Duration::from_secs(5);
/// How long an endpoint that could not be connected to is passed over.
pub(crate) const AVOIDED: Duration = Duration::from_secs(5);

/// Connects to `address`.
///
/// # Errors
/// [`Upstream::Connect`] or [`Upstream::ConnectTimeout`].
pub(crate) async fn connect(
    address: SocketAddr,
    metrics: &WorkerMetrics,
) -> Result<TcpStream, Upstream> {
    let result = match timeout(CONNECT, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => {
            // Requests are small and wait for nobody.
            let _ = stream.set_nodelay(true);
            Ok(stream)
        }
        Ok(Err(error)) => {
            tracing::debug!(%address, %error, "upstream.connect_failed");
            Err(Upstream::Connect)
        }
        Err(_) => Err(Upstream::ConnectTimeout),
    };
    metrics.upstream_connections.inc(if result.is_ok() {
        FetchResult::Ok
    } else {
        FetchResult::Failed
    });
    result
}

/// Mesh TLS to `address`, where `expected` and nobody else must be.
///
/// # Errors
/// As [`connect`], and [`Upstream::Handshake`] when the peer is not who it must be, or refuses us.
pub(crate) async fn mesh(
    address: SocketAddr,
    expected: &SpiffeId,
    identity: &Arc<MeshTls>,
    alpn: &'static [u8],
    metrics: &WorkerMetrics,
) -> Result<TlsStream<TcpStream>, Upstream> {
    let stream = connect(address, metrics).await?;
    let config = identity.client_config(expected, &[alpn]).map_err(|error| {
        tracing::error!(%error, "tls.configuration_failed");
        Upstream::Handshake
    })?;
    let name = ServerName::IpAddress(address.ip().into());
    let handshake = TlsConnector::from(config).connect(name, stream);
    let (result, count) = match timeout(HANDSHAKE, handshake).await {
        Ok(Ok(stream)) if stream.get_ref().1.alpn_protocol() == Some(alpn) => {
            (Ok(stream), Handshake::Done)
        }
        Ok(Ok(_)) => {
            tracing::warn!(%address, %expected, "upstream.protocol_mismatch");
            (Err(Upstream::Handshake), Handshake::Refused)
        }
        Ok(Err(error)) => {
            tracing::warn!(%address, %expected, %error, "upstream.handshake_failed");
            (Err(Upstream::Handshake), Handshake::Refused)
        }
        Err(_) => (Err(Upstream::ConnectTimeout), Handshake::Timeout),
    };
    metrics.handshakes.inc(Direction::Outbound, count);
    result
}

/// Whether a failure at `at` is still fresh enough to pass the endpoint over.
pub(crate) fn is_avoided(failed: Option<Instant>) -> bool {
    failed.is_some_and(|at| at.elapsed() < AVOIDED)
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
pub(crate) fn is_own(address: IpAddr) -> bool {
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

/// Resolves when there is no identity any more, because it has expired: connections that it opened must close.
pub(crate) fn identity_gone(
    identity: &Live<Option<Arc<MeshTls>>>,
) -> impl Future<Output = ()> + use<> {
    let identity = identity.clone();
    async move {
        let mut changes = identity.watch();
        while identity.load().is_some() && changes.changed().await.is_ok() {}
    }
}
