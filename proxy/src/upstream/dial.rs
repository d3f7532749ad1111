//! Opens connections, within time limits.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::Arc,
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
    limits::Limits,
    protocol::{address_claims::Claims, denial::Upstream},
    telemetry::metrics::{Direction, FetchResult, Handshake, worker::WorkerMetrics},
};

/// Connects to `address`.
///
/// # Errors
/// [`Upstream::Connect`] or [`Upstream::ConnectTimeout`].
pub(crate) async fn connect(
    address: SocketAddr,
    limits: &Limits,
    metrics: &WorkerMetrics,
) -> Result<TcpStream, Upstream> {
    let result = match timeout(limits.connect_timeout, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => {
            // Send small requests without delay.
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

/// Connects to a plain-text upstream, which must not be this process itself: a request to an own address would come back
/// until no connection is left. Mesh TLS to the own inbound listener is no such loop: it leads to the program.
///
/// # Errors
/// [`Upstream::Loop`], and as [`connect`].
pub(crate) async fn plain(
    address: SocketAddr,
    own: &Claims,
    limits: &Limits,
    metrics: &WorkerMetrics,
) -> Result<TcpStream, Upstream> {
    if own.is_own(address) {
        return Err(Upstream::Loop);
    }
    connect(address, limits, metrics).await
}

/// Opens mesh TLS to `address`. The peer must have the identity `expected`.
///
/// # Errors
/// As [`connect`], and [`Upstream::Handshake`] when the peer has another identity, or rejects ours.
pub(crate) async fn mesh(
    address: SocketAddr,
    expected: &SpiffeId,
    identity: &Arc<MeshTls>,
    alpn: &'static [u8],
    limits: &Limits,
    metrics: &WorkerMetrics,
) -> Result<TlsStream<TcpStream>, Upstream> {
    let stream = connect(address, limits, metrics).await?;
    let config = identity.client_config(expected, &[alpn]).map_err(|error| {
        tracing::error!(%error, "tls.configuration_failed");
        Upstream::Handshake
    })?;
    let name = ServerName::IpAddress(address.ip().into());
    let handshake = TlsConnector::from(config).connect(name, stream);
    let (result, count) = match timeout(limits.upstream_handshake_timeout, handshake).await {
        Ok(Ok(stream)) if stream.get_ref().1.alpn_protocol() == Some(alpn) => {
            (Ok(stream), Handshake::Done)
        }
        Ok(Ok(_)) => {
            tracing::warn!(%address, %expected, "upstream.protocol_mismatch");
            (Err(Upstream::Handshake), Handshake::Refused)
        }
        Ok(Err(error)) => {
            tracing::warn!(%address, %expected, %error, "upstream.handshake_failed");
            // A connection that broke shows nothing about the peer's identity.
            let is_tls = error
                .get_ref()
                .is_some_and(|cause| cause.is::<rustls::Error>());
            let failure = if is_tls {
                Upstream::Handshake
            } else {
                Upstream::Connect
            };
            (Err(failure), Handshake::Refused)
        }
        Err(_) => (Err(Upstream::ConnectTimeout), Handshake::Timeout),
    };
    metrics.handshakes.inc(Direction::Outbound, count);
    result
}

/// Whether the last failure is recent enough to skip the endpoint.
pub(crate) fn failed_recently(failed: Option<Instant>, limits: &Limits) -> bool {
    failed.is_some_and(|at| at.elapsed() < limits.failure_cooldown)
}

/// The address to dial for a port of an endpoint. The own pod is not dialled at its program's port: connections of a
/// pod to itself are not intercepted, so the program would receive mesh TLS.
pub(crate) fn dial_at(endpoint: &Endpoint, port: u16) -> SocketAddr {
    let address = endpoint.dial(port);
    if address != endpoint.address && is_own(address.ip()) {
        return endpoint.address;
    }
    address
}

/// Whether an address belongs to this host: the kernel would use it as the source address too.
pub(crate) fn is_own(address: IpAddr) -> bool {
    let any: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // Sends nothing; the kernel only selects a route.
    let from = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((address, 9))?;
        socket.local_addr()
    });
    from.is_ok_and(|from| from.ip() == address)
}

/// Resolves when the identity has expired: connections that were opened with it must close.
pub(crate) fn identity_gone(
    identity: &Live<Option<Arc<MeshTls>>>,
) -> impl Future<Output = ()> + use<> {
    let identity = identity.clone();
    async move {
        let mut changes = identity.watch();
        while identity.load().is_some() && changes.changed().await.is_ok() {}
    }
}
