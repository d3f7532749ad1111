//! What clients, none of which needs a certificate, can hold of the listener.

use std::time::Duration;

use tokio::{io::AsyncWriteExt as _, time::Instant};

use super::*;
use crate::tests::harness::until_closed;

const PATH: &str = "/probe/web/liveness";

/// A listener whose probe passes.
async fn passing() -> SocketAddr {
    let (_, port) = Program::start(|routes| routes.fallback(async || "fine")).await;
    listener(Handler::HttpGet(get(port, "/"))).await
}

async fn started_head(here: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(here).await.unwrap();
    let start = format!("GET {PATH} HTTP/1.1\r\n");
    stream.write_all(start.as_bytes()).await.unwrap();
    stream
}

#[test]
fn beyond_128_connections_the_oldest_is_closed_and_probes_are_made() {
    run(async {
        let here = passing().await;
        let mut held = Vec::new();
        for _ in 0..128 {
            held.push(started_head(here).await);
        }
        assert_eq!(response(here, PATH, Method::GET).await.0, 200);
        assert_eq!(until_closed(held.remove(0)).await, "");
        // All others are still open.
        for mut stream in held {
            let end = b"host: pod\r\nconnection: close\r\n\r\n";
            stream.write_all(end).await.unwrap();
            let answer = until_closed(stream).await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        }
    });
}

#[test]
fn a_head_above_16_kib_is_refused() {
    run(async {
        let here = passing().await;
        for (size, status) in [(15 << 10, "200"), (17 << 10, "431")] {
            let mut stream = started_head(here).await;
            let filler = "x".repeat(size);
            let end = format!("host: pod\r\nconnection: close\r\nx: {filler}\r\n\r\n");
            stream.write_all(end.as_bytes()).await.unwrap();
            let answer = until_closed(stream).await;
            let expected = format!("HTTP/1.1 {status} ");
            assert!(answer.starts_with(&expected), "{size}: {answer}");
        }
    });
}

/// The clock stands still while anything can happen, and moves on to the next time limit otherwise.
#[tokio::test(start_paused = true)]
async fn a_head_that_is_not_complete_within_30_seconds_closes_the_connection() {
    let here = passing().await;
    let start = Instant::now();
    assert_eq!(until_closed(started_head(here).await).await, "");
    assert_eq!(start.elapsed().as_secs(), Duration::from_secs(30).as_secs());
}
