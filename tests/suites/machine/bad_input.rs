//! Malformed and hostile input: none of it reaches a program, and no process fails.

mod control_plane;
mod framing;

use merlon_tests::{
    Mesh,
    client::connect,
    mesh::{Guard, Shared},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

static MESH: Shared = Shared::new();

async fn mesh() -> Guard {
    MESH.get(async || {
        Mesh::new()
            .service("orders")
            .allow("web", "http", "/**")
            .caller("batch")
            .start()
            .await
    })
    .await
}

#[tokio::test]
async fn arbitrary_bytes_at_the_inbound_address_are_dropped() {
    let mesh = mesh().await;
    let inbound = mesh.sidecar("orders").inbound();
    for bytes in [
        b"GET /bad HTTP/1.1\r\nhost: orders.shop\r\n\r\n".as_slice(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\xff\xff\x01",
        b"\x15\x03\x03\0\x02\x02\x28",
        b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n",
        &[0xff; 4_096],
    ] {
        let mut stream = connect(inbound).await;
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(
            !answer.starts_with(b"HTTP/"),
            "{}",
            String::from_utf8_lossy(&answer)
        );
    }
    assert!(mesh.seen_at("orders", "/bad").is_empty());
    mesh.as_workload("web")
        .get("orders", "/after-bytes")
        .await
        .is_ok();
}

#[tokio::test]
async fn a_peer_of_the_mesh_cannot_name_a_service_that_the_proxy_does_not_serve() {
    let mesh = mesh().await;
    let peer = mesh.test_peer("web").await;
    let inbound = mesh.sidecar("orders").inbound();
    let stream = peer
        .dial(inbound, "orders", merlon_certs::MERLON_H2)
        .await
        .unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io)
        .await
        .unwrap();
    tokio::spawn(connection);
    for peer in [
        "service=shop/payments;port=80;proto=h2",
        "service=shop/orders;port=99;proto=h2",
        "service=shop/orders;port=80;proto=tcp",
        "service=../orders;port=80;proto=h2",
        "service=shop/orders",
        "port=80",
        "",
        &"x".repeat(4_000),
    ] {
        let request = http::Request::get("http://orders.shop/claimed")
            .header("merlon-peer", peer)
            .body(http_body_util::Empty::<bytes::Bytes>::new())
            .unwrap();
        sender.ready().await.unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert!(
            response.status().is_client_error(),
            "{peer}: {}",
            response.status()
        );
    }
    assert!(mesh.seen_at("orders", "/claimed").is_empty());
}

#[tokio::test]
async fn a_peer_of_the_mesh_cannot_tunnel_past_the_checks_of_an_http_service() {
    let mesh = mesh().await;
    let peer = mesh.test_peer("web").await;
    let inbound = mesh.sidecar("orders").inbound();
    for claim in [
        "service=shop/orders;port=80;proto=tcp",
        "service=shop/orders;port=80;proto=http/1.1",
        "service=shop/missing;port=80;proto=tcp",
        "",
    ] {
        let alpn = merlon_certs::MERLON_TCP;
        let mut stream = peer.dial(inbound, "orders", alpn).await.unwrap();
        let length = u16::try_from(claim.len()).unwrap().to_be_bytes();
        let head = "GET /tunnelled HTTP/1.1\r\nhost: orders.shop\r\n\r\n";
        let bytes = [length.as_slice(), claim.as_bytes(), head.as_bytes()].concat();
        // The proxy may close the connection before this is written.
        let _ = stream.write_all(&bytes).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(
            answer.is_empty(),
            "{claim}: {}",
            String::from_utf8_lossy(&answer)
        );
    }
    assert!(mesh.seen_at("orders", "/tunnelled").is_empty());
}
