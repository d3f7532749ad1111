use std::{convert::Infallible, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use merlon_certs::{MERLON_H2, MeshTls};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{Node, spiffe};
use crate::{
    protocol::http2,
    telemetry::metrics::worker::WorkerMetrics,
    upstream::{body::RequestBody, dial, h2},
};

/// An answer that was read whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: http::HeaderMap,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn problem(&self) -> serde_json::Value {
        assert_eq!(self.headers["content-type"], "application/problem+json");
        serde_json::from_str(&self.body).unwrap()
    }

    pub(crate) fn refused(&self, status: u16, reason: &str) {
        assert_eq!(
            (self.status, self.problem()["reason"].as_str().unwrap()),
            (status, reason),
            "{}",
            self.body
        );
        assert_eq!(
            self.problem()["decision_id"],
            self.headers["merlon-decision-id"].to_str().unwrap()
        );
    }
}

async fn whole(response: Response<Incoming>) -> Answer {
    let (parts, body) = response.into_parts();
    let collected = body.collect().await.unwrap();
    Answer {
        status: parts.status.as_u16(),
        headers: parts.headers,
        body: String::from_utf8_lossy(&collected.to_bytes()).into_owned(),
    }
}

/// Asks in HTTP/1.1.
pub(crate) async fn http1(address: SocketAddr, request: Request<RequestBody>) -> Answer {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::task::spawn_local(connection);
    whole(sender.send_request(request).await.unwrap()).await
}

/// Asks in HTTP/2 with prior knowledge.
pub(crate) async fn h2c(address: SocketAddr, request: Request<RequestBody>) -> Answer {
    let stream = TcpStream::connect(address).await.unwrap();
    let mut sender = h2::begin(stream, std::future::pending()).await.unwrap();
    whole(sender.send_request(request).await.unwrap()).await
}

/// A request without a body.
pub(crate) fn get(host: &str, path: &str) -> Request<RequestBody> {
    Request::get(path)
        .header("host", host)
        .body(RequestBody::Empty)
        .unwrap()
}

/// A request with one.
pub(crate) fn post(host: &str, path: &str, kind: &str, body: &'static str) -> Request<RequestBody> {
    let body = RequestBody::Whole(Some(Bytes::from_static(body.as_bytes())));
    Request::post(path)
        .header("host", host)
        .header("content-type", kind)
        .body(body)
        .unwrap()
}

/// Writes bytes as they are, and reads until the other side has ended.
pub(crate) async fn raw(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

/// A peer with an identity of the mesh that says what it likes.
pub(crate) async fn as_peer(
    identity: &Arc<MeshTls>,
    address: SocketAddr,
    expected: &str,
) -> hyper::client::conn::http2::SendRequest<RequestBody> {
    let expected = spiffe(expected).parse().unwrap();
    let metrics = WorkerMetrics::default();
    h2::begin(
        dial::mesh(address, &expected, identity, MERLON_H2, &metrics)
            .await
            .unwrap(),
        std::future::pending(),
    )
    .await
    .unwrap()
}

/// One request of such a peer.
pub(crate) async fn ask_as_peer(
    identity: &Arc<MeshTls>,
    node: &Node,
    expected: &str,
    request: Request<RequestBody>,
) -> Answer {
    ask_as_peer_at(identity, node.inbound, expected, request).await
}

/// The same, at another address.
pub(crate) async fn ask_as_peer_at(
    identity: &Arc<MeshTls>,
    address: SocketAddr,
    expected: &str,
    request: Request<RequestBody>,
) -> Answer {
    let mut sender = as_peer(identity, address, expected).await;
    whole(sender.send_request(request).await.unwrap()).await
}

/// A body that is sent as the test says.
pub(crate) fn channel() -> (
    tokio::sync::mpsc::Sender<http_body::Frame<Bytes>>,
    UnsyncBoxBody<Bytes, Infallible>,
) {
    let (sender, receiver) = tokio::sync::mpsc::channel(16);
    let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let body =
        http_body_util::StreamBody::new(futures_util::StreamExt::map(stream, Ok::<_, Infallible>));
    (sender, UnsyncBoxBody::new(body))
}

/// An HTTP/2 connection for bodies that are sent as the test says.
pub(crate) async fn h2_client(
    address: SocketAddr,
) -> hyper::client::conn::http2::SendRequest<UnsyncBoxBody<Bytes, Infallible>> {
    let stream = TcpStream::connect(address).await.unwrap();
    let builder = hyper::client::conn::http2::Builder::new(http2::LocalExecutor);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
    tokio::task::spawn_local(connection);
    sender
}

/// The next piece of a body.
pub(crate) async fn piece(body: &mut Incoming) -> Option<Bytes> {
    Some(body.frame().await?.ok()?.into_data().unwrap_or_default())
}
