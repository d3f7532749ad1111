//! The other end of a connection, and what its certificate proves.

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
use merlon_config::name::SpiffeId;
use merlon_net::handshakes::Accepted;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;
use tonic::{Request, Status, transport::server::Connected};

/// The proved identity of the other end, and until when it is proved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PeerSvid {
    pub(crate) id: SpiffeId,
    pub(crate) serial: String,
    pub(crate) not_after: Timestamp,
    pub(crate) public_key_info: Vec<u8>,
}

impl PeerSvid {
    fn of(chain: &[CertificateDer<'_>]) -> Option<Self> {
        // The handshake has judged it; it is read once more only for what stands in it.
        let facts = LeafFacts::parse(chain.first()?).ok()?;
        Some(Self {
            id: facts.id,
            serial: facts.serial,
            not_after: timestamp(facts.not_after),
            public_key_info: facts.public_key_info,
        })
    }

    /// Returns when the certificate has ended.
    pub(crate) async fn ended(&self) {
        loop {
            let left = self.not_after.duration_since(Timestamp::now());
            let Ok(left) = Duration::try_from(left) else {
                return;
            };
            if left.is_zero() {
                return;
            }
            // Clocks are set; look again now and then.
            tokio::time::sleep(left.min(Duration::from_secs(60))).await;
        }
    }
}

/// Certificates count whole seconds.
pub(crate) fn timestamp(time: rustls_pki_types::UnixTime) -> Timestamp {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX)
}

/// The other end of a connection.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    /// `None`: it showed no certificate. For one call that will do.
    pub(crate) svid: Option<Arc<PeerSvid>>,
}

impl Peer {
    pub(crate) fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        let peer = request.extensions().get::<Self>().cloned();
        peer.ok_or_else(|| Status::internal("the connection is not known"))
    }

    /// The identity, if it is proved at this moment.
    pub(crate) fn proved(&self) -> Result<Arc<PeerSvid>, Status> {
        let svid = self.svid.clone().ok_or_else(|| {
            Status::unauthenticated(
                "this call needs a certificate of the mesh: get one from `merlon.v1.Identity.Issue`",
            )
        })?;
        if svid.not_after <= Timestamp::now() {
            return Err(Status::unauthenticated(format!(
                "the certificate of this connection ended at {}",
                svid.not_after
            )));
        }
        Ok(svid)
    }
}

/// A connection whose other end is known as far as it said.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
}

impl From<Accepted> for Connection {
    fn from((stream, address): Accepted) -> Self {
        let chain = stream.get_ref().1.peer_certificates();
        let svid = chain.and_then(PeerSvid::of).map(Arc::new);
        let peer = Peer { address, svid };
        Self { stream, peer }
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
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
