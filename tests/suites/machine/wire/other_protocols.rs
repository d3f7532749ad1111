//! WebSockets and opaque bytes over a wire that is cut.

use futures_util::{SinkExt as _, StreamExt as _};
use merlon_tests::{client::connect, limit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_tungstenite::tungstenite::Message;

use super::mesh;

#[tokio::test]
async fn a_cut_ends_a_web_socket_and_the_next_one_opens_when_the_wire_carries_again() {
    let mesh = mesh().await;
    let (web, wire) = (mesh.as_workload("web"), mesh.wire_to("socket"));
    let mut socket = web.web_socket("socket", "/socket").await.unwrap();
    socket.send(Message::from("ping")).await.unwrap();
    let echo = limit("the echo", socket.next()).await.unwrap().unwrap();
    assert_eq!(echo, Message::from("ping"));

    wire.cut();
    let end = limit("the end of the socket", socket.next()).await;
    assert!(
        matches!(end, Some(Err(_))),
        "no message, no orderly close: {end:?}"
    );
    mesh.log_with("web", &[("host", "socket.shop")])
        .await
        .has("status", "101")
        .has("aborted", "true");

    wire.heal();
    let mut socket = web.web_socket("socket", "/socket").await.unwrap();
    socket.send(Message::from("again")).await.unwrap();
    let echo = limit("the echo", socket.next()).await.unwrap().unwrap();
    assert_eq!(echo, Message::from("again"));
    assert_eq!(mesh.requests_seen_by("socket"), 2);
}

#[tokio::test]
async fn a_cut_ends_a_tcp_connection_and_the_next_one_opens_when_the_wire_carries_again() {
    let mesh = mesh().await;
    let wire = mesh.wire_to("bytes");
    let to = mesh.outbound("web", "bytes");
    let mut stream = connect(to).await;
    stream.write_all(b"ping").await.unwrap();
    let mut echo = [0; 4];
    limit("the echo", stream.read_exact(&mut echo))
        .await
        .unwrap();
    assert_eq!(&echo, b"ping");

    wire.cut();
    let mut rest = Vec::new();
    // The end may be a reset; no byte comes before it.
    let _ = limit("the end of the connection", stream.read_to_end(&mut rest)).await;
    assert!(rest.is_empty(), "{rest:?}");
    mesh.log_with("web", &[("dst", "shop/bytes:80"), ("aborted", "true")])
        .await
        .has("protocol", "tcp");

    wire.heal();
    let mut stream = connect(to).await;
    stream.write_all(b"more").await.unwrap();
    limit("the echo", stream.read_exact(&mut echo))
        .await
        .unwrap();
    assert_eq!(&echo, b"more");
    assert_eq!(mesh.requests_seen_by("bytes"), 2);
}
