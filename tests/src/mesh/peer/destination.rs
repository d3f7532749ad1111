//! What a peer sends to a listener of the mesh.

use std::{io, net::SocketAddr, pin::Pin};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Version};
use http_body_util::Full;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use merlon_certs::{MERLON_H2, MERLON_TCP};
use merlon_config::name::SpiffeId;
use rustls::AlertDescription;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;

use super::{TestPeer, tls_connect};
use crate::{
    client::Reply,
    http2::ending,
    mesh::{NAMESPACE, PORT},
    wait::limit,
};

/// A listener that a peer dials, and the claim and headers of the requests that it sends there.
#[derive(Debug, Clone)]
#[must_use = "nothing is sent before a request or a connection is awaited"]
pub struct Destination {
    peer: TestPeer,
    address: SocketAddr,
    identity: SpiffeId,
    authority: String,
    claim: Option<String>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// A request of a peer, over a connection of its own. Awaiting it sends it.
#[derive(Debug)]
#[must_use = "a request is sent when it is awaited"]
pub struct PeerCall {
    to: Destination,
    request: Request<Bytes>,
}

impl Destination {
    /// Claims the Service that has the same name as the workload of `identity`.
    pub(super) fn new(peer: TestPeer, address: SocketAddr, identity: SpiffeId) -> Self {
        let text = identity.to_string();
        let service = text.rsplit('/').next().unwrap_or_default();
        Self {
            peer,
            address,
            identity,
            authority: format!("{service}.{NAMESPACE}"),
            claim: Some(format!(
                "service={NAMESPACE}/{service};port={PORT};proto=h2"
            )),
            headers: Vec::new(),
        }
    }

    /// Sends this value of `merlon-peer`, and as the preamble of tunnels, instead of that of an honest proxy.
    pub fn claiming(mut self, claim: &str) -> Self {
        self.claim = Some(claim.to_owned());
        self
    }

    /// Sends no `merlon-peer`.
    pub fn without_claim(mut self) -> Self {
        self.claim = None;
        self
    }

    /// Adds a header to each request. It is added to those that the peer sends anyway, `merlon-peer` included.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        let name = HeaderName::try_from(name).expect("a header's name");
        let value = HeaderValue::try_from(value).expect("a header's value");
        self.headers.push((name, value));
        self
    }

    /// `GET`.
    pub fn get(&self, target: &str) -> PeerCall {
        self.call(Method::GET, target, Bytes::new())
    }

    /// Any method, with a body.
    pub fn call(&self, method: Method, target: &str, body: impl Into<Bytes>) -> PeerCall {
        let mut request = Request::builder()
            .method(method)
            .version(Version::HTTP_2)
            .uri(format!("http://{}{target}", self.authority))
            .body(body.into())
            .unwrap_or_else(|error| panic!("{target}: {error}"));
        let headers = request.headers_mut();
        if let Some(claim) = &self.claim {
            let claim = HeaderValue::try_from(claim).expect("a header's value");
            headers.append("merlon-peer", claim);
        }
        for (name, value) in &self.headers {
            headers.append(name, value.clone());
        }
        PeerCall {
            to: self.clone(),
            request,
        }
    }

    /// A TLS connection with this protocol.
    ///
    /// # Errors
    /// The error of the handshake, if this side refuses it. The server's refusal arrives later, with [`Destination::alert`].
    pub async fn dial(&self, alpn: &[u8]) -> io::Result<TlsStream<TcpStream>> {
        let tls = self.peer.client_config(&self.identity, alpn);
        tls_connect(self.address, tls).await
    }

    /// The alert by which the server refuses the TLS connection. In TLS 1.3 a client learns of it when it reads.
    ///
    /// # Panics
    /// If this side refuses the server, or the server accepts the connection.
    pub async fn alert(&self, alpn: &[u8]) -> AlertDescription {
        let outcome = match self.dial(alpn).await {
            Ok(mut stream) => limit("the server's alert", stream.read_u8())
                .await
                .map(drop),
            Err(error) => Err(error),
        };
        let alert = outcome.as_ref().err().and_then(|error| {
            match error.get_ref()?.downcast_ref::<rustls::Error>()? {
                rustls::Error::AlertReceived(alert) => Some(*alert),
                _ => None,
            }
        });
        alert.unwrap_or_else(|| panic!("expected an alert of the server, got {outcome:?}"))
    }

    /// Sends HTTP/2 frames after the preface. Returns the error code of the GOAWAY by which the server ends the connection.
    ///
    /// # Panics
    /// If the server does not end it.
    pub async fn frames(&self, frames: &[u8]) -> Option<u32> {
        let stream = self.dial(MERLON_H2).await.expect("a connection");
        ending(stream, frames).await
    }

    /// A tunnel for opaque bytes, with the claim as its preamble.
    pub async fn open_tunnel(&self) -> TlsStream<TcpStream> {
        let mut stream = self.dial(MERLON_TCP).await.expect("a connection");
        let claim = self.claim.as_deref().unwrap_or_default();
        let length = u16::try_from(claim.len()).expect("a short claim");
        let preamble = [&length.to_be_bytes(), claim.as_bytes()].concat();
        stream.write_all(&preamble).await.expect("a connection");
        stream
    }

    /// Opens a tunnel and sends `bytes`. Returns what comes back until the
    /// server ends the connection.
    ///
    /// # Panics
    /// If the server does not end it.
    pub async fn tunnel(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = self.open_tunnel().await;
        let mut answer = Vec::new();
        limit("the server to end a tunnel", async {
            // The server may close the connection before it has read everything.
            let _ = stream.write_all(bytes).await;
            let _ = stream.flush().await;
            let _ = stream.read_to_end(&mut answer).await;
        })
        .await;
        answer
    }
}

impl PeerCall {
    /// Adds a header to this request.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        let name = HeaderName::try_from(name).expect("a header's name");
        let value = HeaderValue::try_from(value).expect("a header's value");
        self.request.headers_mut().append(name, value);
        self
    }

    /// Sends the request.
    ///
    /// # Errors
    /// The cause, if there is no complete response.
    pub async fn send(self) -> Result<Reply, String> {
        let text = |error: hyper::Error| merlon_config::causes::chain(&error);
        let stream = self.to.dial(MERLON_H2).await;
        let io = TokioIo::new(stream.map_err(|error| error.to_string())?);
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io)
            .await
            .map_err(text)?;
        tokio::spawn(connection);
        let response = sender.send_request(self.request.map(Full::new)).await;
        Reply::read(response.map_err(text)?).await
    }
}

impl IntoFuture for PeerCall {
    type Output = Reply;
    type IntoFuture = Pin<Box<dyn Future<Output = Reply> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async {
            let what = format!("{} {}", self.request.method(), self.request.uri());
            limit(&what, self.send())
                .await
                .unwrap_or_else(|error| panic!("no response to {what}: {error}"))
        })
    }
}
