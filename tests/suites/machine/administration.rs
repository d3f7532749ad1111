//! The addresses of `/live`, `/ready` and `/metrics`, which clients reach without authentication.

use std::net::SocketAddr;

use merlon_tests::{Mesh, client::connect, limit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

#[tokio::test]
async fn the_control_plane_closes_the_oldest_connection_when_there_are_too_many() {
    let mesh = Mesh::new()
        .control_plane_limits("admin: { connections: 4 }")
        .start()
        .await;
    the_oldest_of_too_many_connections_closes(mesh.control_plane().admin(), 4).await;
}

#[tokio::test]
async fn a_proxy_closes_the_oldest_connection_when_there_are_too_many() {
    let mesh = Mesh::new().caller("web").start().await;
    the_oldest_of_too_many_connections_closes(mesh.sidecar("web").admin(), 128).await;
}

async fn the_oldest_of_too_many_connections_closes(at: SocketAddr, most: usize) {
    let mut oldest = connect(at).await;
    let mut others = Vec::new();
    for _ in 0..most {
        others.push(connect(at).await);
    }
    let mut byte = [0];
    let end = limit("the oldest connection to close", oldest.read(&mut byte)).await;
    // What closes it may be a reset.
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    for mut other in others {
        let request = b"GET /live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        other.write_all(request).await.unwrap();
        let mut reply = String::new();
        let read = other.read_to_string(&mut reply);
        limit("the response on another connection", read)
            .await
            .unwrap();
        assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
    }
}
