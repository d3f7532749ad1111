//! What is open ends with its token: a response, a WebSocket, an HTTP/2 stream, a gRPC call.

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{body::Frame, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use merlon_tests::{
    Mesh,
    chat::Line,
    wait::{limit, until_some},
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_tungstenite::tungstenite::{Error, client::IntoClientRequest as _};
use tonic::{Code, metadata::MetadataValue};

use super::{mesh, now, provider};

/// How long a token is accepted after its `exp`, in seconds: the default of `clockSkew`.
const SKEW: u64 = 30;

/// The result of `open` with a token that is accepted for a short time, and the second in which it ends. A slow machine may
/// need longer to open something than the token is accepted; then the next token lives twice as long.
async fn with_a_short_token<T>(open: impl AsyncFn(&str) -> Option<T>) -> (T, u64) {
    for life in [2, 4, 8, 16, 30] {
        let end = now() + life;
        let claims =
            json!({ "groups": ["buyers"], "exp": end - SKEW, "nbf": end - 60, "iat": end - 60 });
        let token = provider().await.sign(json!({}), claims).await;
        if let Some(open) = open(&token).await {
            return (open, end);
        }
        assert!(now() >= end, "refused before the token's end");
    }
    panic!("nothing could be opened within 30 seconds");
}

/// Asserts that the stream at this path ended because of its token, and not before the token's end.
async fn ended_with_its_token(mesh: &Mesh, workload: &str, path: &str, end: u64) {
    assert!(now() >= end, "ended before the token's end");
    let line = until_some(format!("the end of {path} is logged"), async || {
        let mut log = mesh.sidecar(workload).log().into_iter();
        log.find(|line| line.text("path") == path && line.text("aborted") == "true")
    })
    .await;
    line.has("reason", "authn.invalid_token");
}

#[tokio::test]
async fn a_response_ends_when_the_token_it_was_opened_with_expires() {
    let mesh = mesh().await;
    let (mut stream, end) = with_a_short_token(async |token| {
        let mut stream = mesh.as_workload("web").tcp().await;
        let head = format!(
            "POST /stream/http1 HTTP/1.1\r\nhost: orders.shop\r\nauthorization: Bearer {token}\r\n\
             transfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut read = Vec::new();
        limit("the first bytes", async {
            while !String::from_utf8_lossy(&read).contains("first") {
                read.push(stream.read_u8().await.ok()?);
            }
            read.starts_with(b"HTTP/1.1 200 ").then_some(stream)
        })
        .await
    })
    .await;
    // From here on no bytes are sent and no configuration changes.
    let mut rest = Vec::new();
    let _ = limit("the end of the stream", stream.read_to_end(&mut rest)).await;
    assert!(
        !rest.ends_with(b"0\r\n\r\n"),
        "the body must not look complete"
    );
    ended_with_its_token(&mesh, "orders", "/stream/http1", end).await;
}

#[tokio::test]
async fn an_http_2_stream_ends_when_the_token_it_was_opened_with_expires() {
    let mesh = mesh().await;
    let ((mut response, _body), end) = with_a_short_token(async |token| {
        let (body, frames) = mpsc::channel(1);
        let first = Frame::data(Bytes::from_static(b"first"));
        body.send(Ok::<_, std::io::Error>(first)).await.unwrap();
        let io = TokioIo::new(mesh.as_workload("web").tcp().await);
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        let request = Request::post("http://orders.shop/stream/http2")
            .header("authorization", format!("Bearer {token}"))
            .body(StreamBody::new(ReceiverStream::new(frames)))
            .unwrap();
        let response = limit("a response", sender.send_request(request)).await;
        let mut response = response.unwrap();
        let data = limit("the first bytes", response.frame()).await?.ok()?;
        (response.status() == StatusCode::OK && data.data_ref()? == "first")
            .then_some((response, body))
    })
    .await;
    // Resets the stream instead of ending it: the body must not look complete.
    let rest = limit("the end of the stream", response.frame()).await;
    assert!(matches!(rest, Some(Err(_))), "{rest:?}");
    ended_with_its_token(&mesh, "orders", "/stream/http2", end).await;
}

#[tokio::test]
async fn a_web_socket_ends_when_the_token_it_was_opened_with_expires() {
    let mesh = mesh().await;
    let (mut socket, end) = with_a_short_token(async |token| {
        let uri = "ws://orders.shop/socket";
        let mut request = uri.into_client_request().unwrap();
        let value = format!("Bearer {token}").parse().unwrap();
        request.headers_mut().insert("authorization", value);
        let stream = mesh.as_workload("web").tcp().await;
        let opened = tokio_tungstenite::client_async(request, stream);
        let (mut socket, _) = match limit("a WebSocket", opened).await {
            Ok(opened) => opened,
            Err(Error::Http(response)) => {
                assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
                return None;
            }
            Err(error) => panic!("{error}"),
        };
        socket.send("first".into()).await.ok()?;
        let echo = limit("the echo", socket.next()).await?.ok()?;
        (echo.into_text().ok()? == "first").then_some(socket)
    })
    .await;
    // No frame closes it: the program did not end it.
    let rest = limit("the end of the WebSocket", socket.next()).await;
    assert!(matches!(rest, None | Some(Err(_))), "{rest:?}");
    ended_with_its_token(&mesh, "orders", "/socket", end).await;
}

#[tokio::test]
async fn a_grpc_call_ends_when_the_token_it_was_opened_with_expires() {
    let mesh = mesh().await;
    let ((mut lines, _talk), end) = with_a_short_token(async |token| {
        let (talk, said) = mpsc::channel(1);
        talk.send(Line::new("first", 1)).await.unwrap();
        let mut request = tonic::Request::new(ReceiverStream::new(said));
        let bearer = MetadataValue::try_from(format!("Bearer {token}")).unwrap();
        request.metadata_mut().insert("authorization", bearer);
        let mut chat = mesh.as_workload("web").chat("chat").await;
        let mut lines = match chat.talk(request).await {
            Ok(lines) => lines.into_inner(),
            Err(refused) => {
                assert_eq!(refused.code(), Code::Unauthenticated, "{refused:?}");
                return None;
            }
        };
        let line = limit("the first line", lines.message()).await.ok()??;
        (line.text == "heard first").then_some((lines, talk))
    })
    .await;
    let ended = limit("the end of the call", lines.message()).await;
    assert!(ended.is_err(), "{ended:?}");
    ended_with_its_token(&mesh, "chat", "/merlon.test.v1.Chat/Talk", end).await;
}
