//! One HTTP/2 connection to the control plane, over TLS that verifies the control plane's identity.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use hickory_resolver::TokioResolver;
use hyper_util::rt::TokioIo;
use merlon_certs::server_name;
use rustls::ClientConfig;
use tokio::{net::TcpStream, time};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;
use url::{Host, Url};

/// Time limit for DNS, connection and handshake together.
const CONNECT: Duration = Duration::from_secs(5);

/// Interval and time limit of HTTP/2 pings: a peer that disappeared is detected within 15 seconds.
const PING: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));

/// Connects once and never reconnects by itself, so that the caller paces and counts every attempt.
///
/// # Errors
/// The cause of a failed connection.
pub(crate) async fn connect(
    address: &Url,
    tls: Arc<ClientConfig>,
) -> Result<Channel, tonic::transport::Error> {
    let target = address.clone();
    let connector = service_fn(move |_| {
        let (target, tls) = (target.clone(), Arc::clone(&tls));
        async move {
            let connected = time::timeout(CONNECT, dial(&target, tls)).await;
            connected
                .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
                .map(TokioIo::new)
        }
    });
    // The URI sets the authority only; the connector knows the address.
    Endpoint::from_static("http://merlon-control-plane")
        .connect_timeout(CONNECT + Duration::from_secs(1))
        .http2_keep_alive_interval(PING.0)
        .keep_alive_timeout(PING.1)
        .keep_alive_while_idle(true)
        .connect_with_connector(connector)
        .await
}

async fn dial(
    address: &Url,
    tls: Arc<ClientConfig>,
) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let stream = reach(address).await?;
    stream.set_nodelay(true)?;
    // The verifier checks the SPIFFE ID, not this name.
    TlsConnector::from(tls).connect(server_name(), stream).await
}

async fn reach(address: &Url) -> io::Result<TcpStream> {
    let port = address.port_or_known_default().unwrap_or(443);
    let addresses: Vec<SocketAddr> = match address.host() {
        Some(Host::Ipv4(ip)) => vec![(ip, port).into()],
        Some(Host::Ipv6(ip)) => vec![(ip, port).into()],
        Some(Host::Domain("localhost")) => vec![([127, 0, 0, 1], port).into()],
        Some(Host::Domain(name)) => resolve(name)
            .await?
            .into_iter()
            .map(|ip| (ip, port).into())
            .collect(),
        None => Vec::new(),
    };
    TcpStream::connect(addresses.as_slice()).await
}

/// Resolves without the C library: linked statically, it would load modules of the host.
async fn resolve(name: &str) -> io::Result<Vec<std::net::IpAddr>> {
    let resolver = TokioResolver::builder_tokio().and_then(|builder| builder.build());
    let found = resolver.map_err(io::Error::other)?.lookup_ip(name).await;
    Ok(found.map_err(io::Error::other)?.iter().collect())
}
