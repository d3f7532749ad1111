//! The peer of a connection, and the identity that its certificate proves.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use jiff::Timestamp;
use merlon_certs::{CertificateDer, LeafFacts};
use merlon_config::{clock, name::SpiffeId};
use merlon_net::handshakes::Accepted;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;
use tonic::{Request, Status, transport::server::Connected};

/// The authenticated identity of the peer, and when its certificate expires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PeerSvid {
    pub(crate) id: SpiffeId,
    pub(crate) serial: String,
    pub(crate) not_after: Timestamp,
    pub(crate) public_key_info: Vec<u8>,
}

impl PeerSvid {
    fn of(chain: &[CertificateDer<'_>]) -> Option<Self> {
        // The handshake has verified the certificate; this only reads its fields.
        let facts = LeafFacts::parse(chain.first()?).ok()?;
        Some(Self {
            id: facts.id,
            serial: facts.serial,
            not_after: timestamp(facts.not_after),
            public_key_info: facts.public_key_info,
        })
    }

    /// Returns when the certificate has expired. The clock, which may jump, is read every `check`.
    pub(crate) async fn ended(&self, check: Duration) {
        clock::outside(Timestamp::MIN..self.not_after, check).await;
    }
}

/// Certificates have a resolution of one second.
pub(crate) fn timestamp(time: rustls_pki_types::UnixTime) -> Timestamp {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX)
}

/// The peer of a connection.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionPeer {
    pub(crate) address: SocketAddr,
    /// `None` without a client certificate, which only `Issue` accepts.
    pub(crate) svid: Option<Arc<PeerSvid>>,
}

impl ConnectionPeer {
    pub(crate) fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        let peer = request.extensions().get::<Self>().cloned();
        peer.ok_or_else(|| Status::internal("the peer of this connection is unknown"))
    }

    /// The identity, if its certificate has not expired.
    pub(crate) fn proved(&self) -> Result<Arc<PeerSvid>, Status> {
        let svid = self.svid.clone().ok_or_else(|| {
            Status::unauthenticated(
                "this call needs a certificate of the mesh: request one from `merlon.v1.Identity.Issue`",
            )
        })?;
        if svid.not_after <= clock::now() {
            return Err(Status::unauthenticated(format!(
                "the certificate of this connection expired at {}",
                svid.not_after
            )));
        }
        Ok(svid)
    }
}

/// A connection after its TLS handshake, with its peer.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TlsStream<TcpStream>,
    peer: ConnectionPeer,
}

impl From<Accepted> for Connection {
    fn from((stream, address): Accepted) -> Self {
        let chain = stream.get_ref().1.peer_certificates();
        let svid = chain.and_then(PeerSvid::of).map(Arc::new);
        let peer = ConnectionPeer { address, svid };
        Self { stream, peer }
    }
}

impl Connected for Connection {
    type ConnectInfo = ConnectionPeer;

    fn connect_info(&self) -> ConnectionPeer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
