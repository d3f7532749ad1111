//! HTTP/1.1 framing and HTTP/2 frames that must not be accepted.

use std::net::SocketAddr;

use http::{Method, StatusCode};
use merlon_tests::{Client, app::App, mesh::Standalone};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::mesh;

/// Requests with broken framing, which the proxy must not interpret in any way.
const FRAMING: &[(&str, &str)] = &[
    (
        "length and encoding",
        "POST /bad HTTP/1.1\r\nhost: orders.shop\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "two different lengths",
        "POST /bad HTTP/1.1\r\nhost: orders.shop\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
    ),
    (
        "two equal lengths",
        "POST /bad HTTP/1.1\r\nhost: orders.shop\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\nhello",
    ),
    (
        "a list of lengths",
        "POST /bad HTTP/1.1\r\nhost: orders.shop\r\ncontent-length: 5, 5\r\n\r\nhello",
    ),
    (
        "a signed length",
        "POST /bad HTTP/1.1\r\nhost: orders.shop\r\ncontent-length: +5\r\n\r\nhello",
    ),
    (
        "a negative length",
        "POST /bad HTTP/1.1\r\nhost: orders.shop\r\ncontent-length: -1\r\n\r\n",
    ),
    (
        "a hexadecimal length",
        "POST /bad HTTP/1.1\r\nhost: orders.shop\r\ncontent-length: 0x5\r\n\r\nhello",
    ),
    (
        "a length that overflows",
        "POST /bad HTTP/1.1\r\nhost: orders.shop\r\ncontent-length: 99999999999999999999\r\n\r\n",
    ),
    (
        "an encoding that is not chunked",
        "POST /bad HTTP/1.1\r\nhost: orders.shop\r\ntransfer-encoding: identity\r\n\r\n",
    ),
    (
        "chunked twice",
        "POST /bad HTTP/1.1\r\nhost: orders.shop\r\ntransfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "gzip before chunked",
        "POST /bad HTTP/1.1\r\nhost: orders.shop\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "chunked with a suffix",
        "POST /bad HTTP/1.1\r\nhost: orders.shop\r\ntransfer-encoding: chunkedx\r\n\r\n0\r\n\r\n",
    ),
    (
        "an encoding with a vertical tab",
        "POST /bad HTTP/1.1\r\nhost: orders.shop\r\ntransfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "space before the colon",
        "POST /bad HTTP/1.1\r\nhost: orders.shop\r\ntransfer-encoding : chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "a folded header",
        "GET /bad HTTP/1.1\r\nhost: orders.shop\r\nx-one: 1\r\n two\r\n\r\n",
    ),
    (
        "a bare line feed",
        "GET /bad HTTP/1.1\nhost: orders.shop\n\n",
    ),
    (
        "a bare carriage return",
        "GET /bad HTTP/1.1\r\nhost: orders.shop\r\nx: 1\ry: 2\r\n\r\n",
    ),
    (
        "a null byte in a value",
        "GET /bad HTTP/1.1\r\nhost: orders.shop\r\nx: a\0b\r\n\r\n",
    ),
    (
        "a header without a name",
        "GET /bad HTTP/1.1\r\nhost: orders.shop\r\n: x\r\n\r\n",
    ),
    (
        "a header without a colon",
        "GET /bad HTTP/1.1\r\nhost: orders.shop\r\nnonsense\r\n\r\n",
    ),
    (
        "an underscore in a name",
        "GET /bad HTTP/1.1\r\nhost: orders.shop\r\nmerlon_peer: x\r\n\r\n",
    ),
    ("no host", "GET /bad HTTP/1.1\r\nx: 1\r\n\r\n"),
    (
        "two hosts",
        "GET /bad HTTP/1.1\r\nhost: orders.shop\r\nhost: payments.shop\r\n\r\n",
    ),
    (
        "two tokens",
        "GET /bad HTTP/1.1\r\nhost: orders.shop\r\nauthorization: Bearer a\r\nauthorization: Bearer b\r\n\r\n",
    ),
    (
        "a space in the target",
        "GET /bad path HTTP/1.1\r\nhost: orders.shop\r\n\r\n",
    ),
    (
        "a tab in the request line",
        "GET\t/bad HTTP/1.1\r\nhost: orders.shop\r\n\r\n",
    ),
    (
        "two spaces in the request line",
        "GET  /bad HTTP/1.1\r\nhost: orders.shop\r\n\r\n",
    ),
    (
        "a fragment in the target",
        "GET /bad#x HTTP/1.1\r\nhost: orders.shop\r\n\r\n",
    ),
    (
        "a target without a slash",
        "GET bad HTTP/1.1\r\nhost: orders.shop\r\n\r\n",
    ),
    (
        "bytes beyond ASCII in the target",
        "GET /bad\u{e9} HTTP/1.1\r\nhost: orders.shop\r\n\r\n",
    ),
    ("HTTP/0.9", "GET /bad\r\n\r\n"),
    ("HTTP/1.2", "GET /bad HTTP/1.2\r\nhost: orders.shop\r\n\r\n"),
    (
        "HTTP/3 in text",
        "GET /bad HTTP/3.0\r\nhost: orders.shop\r\n\r\n",
    ),
    (
        "a version in small letters",
        "GET /bad http/1.1\r\nhost: orders.shop\r\n\r\n",
    ),
    ("a method alone", "GET\r\n\r\n"),
    (
        "a method in brackets",
        "<GET> /bad HTTP/1.1\r\nhost: orders.shop\r\n\r\n",
    ),
    (
        "an empty line first",
        "\r\nGET /bad HTTP/1.1\r\nhost: orders.shop\r\n\r\n",
    ),
    (
        "a chunk size with a sign",
        "POST /bad-chunk HTTP/1.1\r\nhost: orders.shop\r\ntransfer-encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n",
    ),
    (
        "a chunk size in 0x",
        "POST /bad-chunk HTTP/1.1\r\nhost: orders.shop\r\ntransfer-encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
    ),
    (
        "a chunk that is longer than its size",
        "POST /bad-chunk HTTP/1.1\r\nhost: orders.shop\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhello\r\n0\r\n\r\n",
    ),
    (
        "a chunk size that overflows",
        "POST /bad-chunk HTTP/1.1\r\nhost: orders.shop\r\ntransfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\nhello\r\n0\r\n\r\n",
    ),
    (
        "a chunk ended by a line feed",
        "POST /bad-chunk HTTP/1.1\r\nhost: orders.shop\r\ntransfer-encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n",
    ),
    (
        "TLS to a plain port",
        "\x16\x03\x01\x02\0\x01\0\x01\u{fc}\x03\x03nonsense\r\n\r\n",
    ),
    ("arbitrary bytes", "\x01\x02\x03\x04\x05\x06\x07\r\n\r\n"),
];

/// Asserts that each connection ends with 4xx, 5xx or no response, and that no program answers.
async fn refuses_framing(to: SocketAddr) {
    let client = Client::new(to, "shop");
    for (what, bytes) in FRAMING {
        let answer = client.raw(bytes.as_bytes()).await;
        let statuses: Vec<_> = answer
            .lines()
            .filter_map(|line| line.strip_prefix("HTTP/1.1 "))
            .collect();
        let refused = match statuses.as_slice() {
            [] => answer.is_empty(),
            [status] => matches!(status.as_bytes().first(), Some(b'4' | b'5')),
            _ => false,
        };
        assert!(refused, "{what}: {answer:?}");
    }
}

#[tokio::test]
async fn broken_framing_from_a_program_ends_the_connection_and_reaches_no_program() {
    let mesh = mesh().await;
    refuses_framing(mesh.sidecar("web").outbound()).await;
    // A broken chunk is detected after the head was passed on; that request never completes.
    assert!(mesh.seen_at("orders", "/bad").is_empty());
    mesh.as_workload("web")
        .get("orders", "/after-framing")
        .await
        .is_ok();
}

#[tokio::test]
async fn broken_framing_at_a_plain_inbound_address_ends_the_connection_and_reaches_no_program() {
    let app = App::http().await;
    let files = format!(
        "apiVersion: merlon.io/v1alpha1\nkind: Service\nmetadata: {{ name: orders, namespace: shop }}\n\
         spec:\n  selector: {{ app: orders }}\n  ports: [{{ port: 80, targetPort: {} }}]\n---\n\
         apiVersion: merlon.io/v1alpha1\nkind: Workload\n\
         metadata: {{ name: orders, namespace: shop, labels: {{ app: orders }} }}\nspec: {{ serviceAccount: orders }}\n---\n\
         apiVersion: merlon.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{ name: all, namespace: shop }}\n\
         spec:\n  policies: |\n    @id(\"all\")\n    @reason(\"A test.\")\n    permit(principal, action, resource);\n",
        app.address().port()
    );
    let proxy = Standalone::sidecar("orders", &[("orders.yaml", &files)])
        .start()
        .await;
    refuses_framing(proxy.proxy().inbound()).await;
    assert!(!app.seen().iter().any(|seen| seen.target == "/bad"));
    Client::new(proxy.proxy().inbound(), "shop")
        .get("orders", "/good")
        .await
        .is_ok();
}

#[tokio::test]
async fn bytes_after_a_broken_request_on_its_connection_are_not_read() {
    let mesh = mesh().await;
    let answer = mesh
        .as_workload("web")
        .raw(
            b"POST /smuggled HTTP/1.1\r\nhost: orders.shop\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n\
              GET /smuggled HTTP/1.1\r\nhost: orders.shop\r\n\r\n",
        )
        .await;
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    assert!(mesh.seen_at("orders", "/smuggled").is_empty());
}

#[tokio::test]
async fn oversized_heads_are_refused_while_they_arrive() {
    let mesh = mesh().await;
    let web = mesh.as_workload("web");
    let long_line = format!(
        "GET /{} HTTP/1.1\r\nhost: orders.shop\r\n\r\n",
        "x".repeat(10_000)
    );
    assert!(
        web.raw(long_line.as_bytes())
            .await
            .starts_with("HTTP/1.1 414 ")
    );
    let large = format!(
        "GET /bad HTTP/1.1\r\nhost: orders.shop\r\nx: {}\r\n\r\n",
        "x".repeat(80_000)
    );
    assert!(web.raw(large.as_bytes()).await.starts_with("HTTP/1.1 431 "));
    let many: String = (0..150)
        .map(|number| format!("x-{number}: 1\r\n"))
        .collect();
    let many = format!("GET /bad HTTP/1.1\r\nhost: orders.shop\r\n{many}\r\n");
    assert!(web.raw(many.as_bytes()).await.starts_with("HTTP/1.1 431 "));
    // No line end ever comes.
    assert!(
        web.raw("x".repeat(100_000).as_bytes())
            .await
            .starts_with("HTTP/1.1 4")
    );
    assert!(mesh.seen_at("orders", "/bad").is_empty());
}

#[tokio::test]
async fn invalid_http_2_frames_end_the_connection() {
    let mesh = mesh().await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    for frames in [
        b"nonsense that is no frame at all".as_slice(),
        // DATA on stream 0; HEADERS on an even stream; a SETTINGS frame of 5 bytes; a frame of 16 MiB.
        b"\0\0\0\x04\0\0\0\0\0\0\0\x01\0\0\0\0\0\0x",
        b"\0\0\0\x04\0\0\0\0\0\0\0\x01\x01\x05\0\0\0\x02\x82",
        b"\0\0\x05\x04\0\0\0\0\0xxxxx",
        b"\xff\xff\xff\0\0\0\0\0\x01",
    ] {
        let mut stream = mesh.as_workload("web").tcp().await;
        let _ = stream.write_all(preface).await;
        let _ = stream.write_all(frames).await;
        let _ = stream.shutdown().await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
    mesh.as_workload("web")
        .get("orders", "/after-frames")
        .over_http2()
        .await
        .is_ok();
}

#[tokio::test]
async fn trace_and_connect_are_405() {
    let mesh = mesh().await;
    let web = mesh.as_workload("web");
    let reply = web.call(Method::TRACE, "orders", "/trace").await;
    assert_eq!(reply.status, StatusCode::METHOD_NOT_ALLOWED, "{reply:?}");
    let answer = web
        .raw(
            b"CONNECT orders.shop:80 HTTP/1.1\r\nhost: orders.shop:80\r\nconnection: close\r\n\r\n",
        )
        .await;
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
}
