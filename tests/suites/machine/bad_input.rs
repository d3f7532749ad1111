//! Malformed and hostile input: none of it reaches a program, and no process fails.

mod control_plane;
mod frames;
mod framing;
mod loops;
mod peers;
mod resources;

use merlon_tests::{
    Mesh,
    client::connect,
    mesh::{Guard, Shared},
    until,
    wait::limit,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

static MESH: Shared = Shared::new();

async fn mesh() -> Guard {
    MESH.get(async || {
        Mesh::new()
            .service("orders")
            .allow("web", "http", "/**")
            .tcp_service("echo")
            .allow_tcp("web")
            .caller("batch")
            .start()
            .await
    })
    .await
}

/// Bytes that are not TLS.
const NO_TLS: &[&[u8]] = &[
    b"GET /bad HTTP/1.1\r\nhost: orders.shop\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
    b"\x16\x03\x01\xff\xff\x01",
    b"\x15\x03\x03\0\x02\x02\x28",
    b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n",
    &[0; 10_000],
    &[0xff; 4_096],
];

/// Sends `bytes` and asserts that the server ends the connection, with nothing but a TLS alert (RFC 8446 §6). This side
/// stays open.
async fn is_dropped(to: std::net::SocketAddr, bytes: &[u8]) {
    let mut stream = connect(to).await;
    let mut answer = Vec::new();
    limit("the server to end a connection", async {
        // The server may close the connection before it has read everything.
        let _ = stream.write_all(bytes).await;
        let _ = stream.read_to_end(&mut answer).await;
    })
    .await;
    let alert = matches!(answer.as_slice(), [] | [0x15, 3, _, 0, 2, 2, _]);
    assert!(alert, "{bytes:?}: {}", String::from_utf8_lossy(&answer));
}

#[tokio::test]
async fn bytes_that_are_not_tls_at_the_inbound_address_are_dropped_and_counted() {
    let mesh = mesh().await;
    let orders = mesh.sidecar("orders");
    let labels = "direction=\"inbound\",result=\"refused\"";
    let refused = async || orders.metric("merlon_tls_handshakes_total", labels).await;
    let before = refused().await;
    let mut sent = 0.0;
    for bytes in NO_TLS {
        is_dropped(orders.inbound(), bytes).await;
        sent += 1.0;
    }
    until("each failed handshake is counted", async || {
        refused().await >= before + sent
    })
    .await;
    assert!(mesh.seen_at("orders", "/bad").is_empty());
    mesh.as_workload("web")
        .get("orders", "/after-bytes")
        .await
        .is_ok();
}
