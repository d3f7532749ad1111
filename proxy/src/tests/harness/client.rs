use std::{convert::Infallible, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use merlon_certs::{MERLON_H2, MeshTls};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{Node, spiffe};
use crate::{
    limits::Limits,
    protocol::http2,
    telemetry::metrics::worker::WorkerMetrics,
    upstream::{body::RequestBody, dial, h2},
};

/// A response with its complete body.
#[derive(Debug)]
pub(crate) struct CollectedResponse {
    pub(crate) status: u16,
    pub(crate) headers: http::HeaderMap,
    pub(crate) body: String,
}

impl CollectedResponse {
    pub(crate) fn problem(&self) -> serde_json::Value {
        assert_eq!(self.headers["content-type"], "application/problem+json");
        serde_json::from_str(&self.body).unwrap()
    }

    /// Asserts a problem response with this status and reason, and with a decision ID.
    pub(crate) fn assert_refused(&self, status: u16, reason: &str) {
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

/// The complete response.
pub(crate) async fn collect(response: Response<Incoming>) -> CollectedResponse {
    let (parts, body) = response.into_parts();
    let collected = body.collect().await.unwrap();
    CollectedResponse {
        status: parts.status.as_u16(),
        headers: parts.headers,
        body: String::from_utf8_lossy(&collected.to_bytes()).into_owned(),
    }
}

/// Sends a request over HTTP/1.1.
pub(crate) async fn http1(address: SocketAddr, request: Request<RequestBody>) -> CollectedResponse {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::task::spawn_local(connection);
    collect(sender.send_request(request).await.unwrap()).await
}

/// Sends a request over HTTP/2 with prior knowledge.
pub(crate) async fn h2c(address: SocketAddr, request: Request<RequestBody>) -> CollectedResponse {
    let stream = TcpStream::connect(address).await.unwrap();
    let mut sender = h2::begin(stream, std::future::pending(), &Limits::default())
        .await
        .unwrap();
    collect(sender.send_request(request).await.unwrap()).await
}

/// A `GET` request without a body.
pub(crate) fn get(host: &str, path: &str) -> Request<RequestBody> {
    Request::get(path)
        .header("host", host)
        .body(RequestBody::Empty)
        .unwrap()
}

/// A `POST` request with a body.
pub(crate) fn post(host: &str, path: &str, kind: &str, body: &'static str) -> Request<RequestBody> {
    let body = RequestBody::Whole(Some(Bytes::from_static(body.as_bytes())));
    Request::post(path)
        .header("host", host)
        .header("content-type", kind)
        .body(body)
        .unwrap()
}

/// Writes bytes unchanged and reads until the other side closes.
pub(crate) async fn raw(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

/// A connection of a mesh peer that sends arbitrary requests, without a proxy of its own.
pub(crate) async fn connect_as_peer(
    identity: &Arc<MeshTls>,
    address: SocketAddr,
    expected: &str,
) -> hyper::client::conn::http2::SendRequest<RequestBody> {
    let expected = spiffe(expected).parse().unwrap();
    let (limits, metrics) = (Limits::default(), WorkerMetrics::default());
    h2::begin(
        dial::mesh(address, &expected, identity, MERLON_H2, &limits, &metrics)
            .await
            .unwrap(),
        std::future::pending(),
        &limits,
    )
    .await
    .unwrap()
}

/// Sends one request as such a peer.
pub(crate) async fn send_as_peer(
    identity: &Arc<MeshTls>,
    node: &Node,
    expected: &str,
    request: Request<RequestBody>,
) -> CollectedResponse {
    send_as_peer_to(identity, node.inbound, expected, request).await
}

/// As [`send_as_peer`], to another address.
pub(crate) async fn send_as_peer_to(
    identity: &Arc<MeshTls>,
    address: SocketAddr,
    expected: &str,
    request: Request<RequestBody>,
) -> CollectedResponse {
    let mut sender = connect_as_peer(identity, address, expected).await;
    collect(sender.send_request(request).await.unwrap()).await
}

/// A body that the test sends frame by frame.
pub(crate) fn streamed_body() -> (
    tokio::sync::mpsc::Sender<http_body::Frame<Bytes>>,
    UnsyncBoxBody<Bytes, Infallible>,
) {
    let (sender, receiver) = tokio::sync::mpsc::channel(16);
    let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let body =
        http_body_util::StreamBody::new(futures_util::StreamExt::map(stream, Ok::<_, Infallible>));
    (sender, UnsyncBoxBody::new(body))
}

/// An HTTP/2 connection for bodies that the test sends frame by frame.
pub(crate) async fn h2_client(
    address: SocketAddr,
) -> hyper::client::conn::http2::SendRequest<UnsyncBoxBody<Bytes, Infallible>> {
    let stream = TcpStream::connect(address).await.unwrap();
    let builder = hyper::client::conn::http2::Builder::new(http2::LocalExecutor);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
    tokio::task::spawn_local(connection);
    sender
}

/// The data of the next frame of a body.
pub(crate) async fn next_data(body: &mut Incoming) -> Option<Bytes> {
    Some(body.frame().await?.ok()?.into_data().unwrap_or_default())
}

/// What arrives until the other side closes.
pub(crate) async fn until_closed(mut stream: impl AsyncRead + Unpin) -> String {
    let mut answer = Vec::new();
    // A reset is an end too.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}
