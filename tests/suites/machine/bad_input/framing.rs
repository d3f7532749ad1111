//! HTTP/1.1 framing that must not be accepted.

use std::net::SocketAddr;

use http::StatusCode;
use merlon_tests::{
    Client, Reply,
    app::{App, BodyState},
    connection::Connection,
    mesh::{Sidecar, Standalone},
    refusals::{Attempt, Refusals},
    until,
    wait::{limit, until_some},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::mesh;

/// Requests with broken framing, which the proxy must not interpret in any way, and how it refuses them.
const FRAMING: &[(&str, &str, u16, &str)] = &[
    (
        "length and encoding",
        "POST /bad HTTP/1.1\r\nhost: orders.shop\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
        "http.framing",
    ),
    (
        "two different lengths",
        "POST /bad HTTP/1.1\r\nhost: orders.shop\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
        400,
        "http.framing",
    ),
    (
        "two equal lengths",
        "POST /bad HTTP/1.1\r\nhost: orders.shop\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\nhello",
        400,
        "http.framing",
    ),
    (
        "a list of lengths",
        "POST /bad HTTP/1.1\r\nhost: orders.shop\r\ncontent-length: 5, 5\r\n\r\nhello",
        400,
        "http.framing",
    ),
    (
        "a signed length",
        "POST /bad HTTP/1.1\r\nhost: orders.shop\r\ncontent-length: +5\r\n\r\nhello",
        400,
        "http.framing",
    ),
    (
        "a negative length",
        "POST /bad HTTP/1.1\r\nhost: orders.shop\r\ncontent-length: -1\r\n\r\n",
        400,
        "http.framing",
    ),
    (
        "a hexadecimal length",
        "POST /bad HTTP/1.1\r\nhost: orders.shop\r\ncontent-length: 0x5\r\n\r\nhello",
        400,
        "http.framing",
    ),
    (
        "a length that overflows",
        "POST /bad HTTP/1.1\r\nhost: orders.shop\r\ncontent-length: 99999999999999999999\r\n\r\n",
        400,
        "http.framing",
    ),
    (
        "an encoding that is not chunked",
        "POST /bad HTTP/1.1\r\nhost: orders.shop\r\ntransfer-encoding: identity\r\n\r\n",
        400,
        "http.framing",
    ),
    (
        "chunked twice",
        "POST /bad HTTP/1.1\r\nhost: orders.shop\r\ntransfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        400,
        "http.framing",
    ),
    (
        "gzip before chunked",
        "POST /bad HTTP/1.1\r\nhost: orders.shop\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        400,
        "http.framing",
    ),
    (
        "chunked with a suffix",
        "POST /bad HTTP/1.1\r\nhost: orders.shop\r\ntransfer-encoding: chunkedx\r\n\r\n0\r\n\r\n",
        400,
        "http.framing",
    ),
    (
        "an encoding with a vertical tab",
        "POST /bad HTTP/1.1\r\nhost: orders.shop\r\ntransfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        400,
        "http.header",
    ),
    (
        "space before the colon",
        "POST /bad HTTP/1.1\r\nhost: orders.shop\r\ntransfer-encoding : chunked\r\n\r\n0\r\n\r\n",
        400,
        "http.header",
    ),
    (
        "a folded header",
        "GET /bad HTTP/1.1\r\nhost: orders.shop\r\nx-one: 1\r\n two\r\n\r\n",
        400,
        "http.framing",
    ),
    (
        "a bare line feed",
        "GET /bad HTTP/1.1\nhost: orders.shop\n\n",
        400,
        "http.framing",
    ),
    (
        "a bare carriage return",
        "GET /bad HTTP/1.1\r\nhost: orders.shop\r\nx: 1\ry: 2\r\n\r\n",
        400,
        "http.framing",
    ),
    (
        "a null byte in a value",
        "GET /bad HTTP/1.1\r\nhost: orders.shop\r\nx: a\0b\r\n\r\n",
        400,
        "http.header",
    ),
    (
        "a header without a name",
        "GET /bad HTTP/1.1\r\nhost: orders.shop\r\n: x\r\n\r\n",
        400,
        "http.header",
    ),
    (
        "a header without a colon",
        "GET /bad HTTP/1.1\r\nhost: orders.shop\r\nnonsense\r\n\r\n",
        400,
        "http.header",
    ),
    (
        "an underscore in a name",
        "GET /bad HTTP/1.1\r\nhost: orders.shop\r\nmerlon_peer: x\r\n\r\n",
        400,
        "http.header",
    ),
    (
        "no host",
        "GET /bad HTTP/1.1\r\nx: 1\r\n\r\n",
        400,
        "http.authority",
    ),
    (
        "two hosts",
        "GET /bad HTTP/1.1\r\nhost: orders.shop\r\nhost: payments.shop\r\n\r\n",
        400,
        "http.authority",
    ),
    (
        "two tokens",
        "GET /bad HTTP/1.1\r\nhost: orders.shop\r\nauthorization: Bearer a\r\nauthorization: Bearer b\r\n\r\n",
        400,
        "http.header",
    ),
    (
        "a space in the target",
        "GET /bad path HTTP/1.1\r\nhost: orders.shop\r\n\r\n",
        400,
        "http.framing",
    ),
    (
        "a tab in the request line",
        "GET\t/bad HTTP/1.1\r\nhost: orders.shop\r\n\r\n",
        400,
        "http.framing",
    ),
    (
        "two spaces in the request line",
        "GET  /bad HTTP/1.1\r\nhost: orders.shop\r\n\r\n",
        400,
        "http.framing",
    ),
    (
        "a fragment in the target",
        "GET /bad#x HTTP/1.1\r\nhost: orders.shop\r\n\r\n",
        400,
        "http.path",
    ),
    (
        "a target without a slash",
        "GET bad HTTP/1.1\r\nhost: orders.shop\r\n\r\n",
        400,
        "http.path",
    ),
    (
        "bytes beyond ASCII in the target",
        "GET /bad\u{e9} HTTP/1.1\r\nhost: orders.shop\r\n\r\n",
        400,
        "http.path",
    ),
    ("HTTP/0.9", "GET /bad\r\n\r\n", 400, "http.framing"),
    (
        "HTTP/1.2",
        "GET /bad HTTP/1.2\r\nhost: orders.shop\r\n\r\n",
        505,
        "http.framing",
    ),
    (
        "HTTP/3 in text",
        "GET /bad HTTP/3.0\r\nhost: orders.shop\r\n\r\n",
        505,
        "http.framing",
    ),
    (
        "a version in small letters",
        "GET /bad http/1.1\r\nhost: orders.shop\r\n\r\n",
        400,
        "http.framing",
    ),
    ("a method alone", "GET\r\n\r\n", 400, "http.framing"),
    (
        "a method in brackets",
        "<GET> /bad HTTP/1.1\r\nhost: orders.shop\r\n\r\n",
        400,
        "http.framing",
    ),
    (
        "an empty line first",
        "\r\nGET /bad HTTP/1.1\r\nhost: orders.shop\r\n\r\n",
        400,
        "http.framing",
    ),
    (
        "a chunk size with a sign",
        "POST /bad-chunk HTTP/1.1\r\nhost: orders.shop\r\ntransfer-encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n",
        400,
        "http.framing",
    ),
    (
        "a chunk size in 0x",
        "POST /bad-chunk HTTP/1.1\r\nhost: orders.shop\r\ntransfer-encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
        400,
        "http.framing",
    ),
    (
        "a chunk that is longer than its size",
        "POST /bad-chunk HTTP/1.1\r\nhost: orders.shop\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhello\r\n0\r\n\r\n",
        400,
        "http.framing",
    ),
    (
        "a chunk size that overflows",
        "POST /bad-chunk HTTP/1.1\r\nhost: orders.shop\r\ntransfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        400,
        "http.framing",
    ),
    (
        "a chunk ended by a line feed",
        "POST /bad-chunk HTTP/1.1\r\nhost: orders.shop\r\ntransfer-encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n",
        400,
        "http.framing",
    ),
    (
        "TLS to a plain port",
        "\x16\x03\x01\x02\0\x01\0\x01\u{fc}\x03\x03nonsense\r\n\r\n",
        400,
        "http.framing",
    ),
    (
        "arbitrary bytes",
        "\x01\x02\x03\x04\x05\x06\x07\r\n\r\n",
        400,
        "http.framing",
    ),
];

/// Asserts that `proxy` refuses each of the requests at its listener `to`, and that `program` receives none of them.
async fn refuses_framing(proxy: &Sidecar, to: SocketAddr, program: &App) {
    let rows = FRAMING.iter().map(|(name, bytes, status, reason)| {
        let attempt = Attempt::raw(to, "/bad", bytes.as_bytes());
        (*name, attempt, *status, *reason)
    });
    Refusals::by(proxy, program).each(rows).await;
}

#[tokio::test]
async fn broken_framing_from_a_program_is_refused_and_reaches_no_program() {
    let mesh = mesh().await;
    let web = mesh.sidecar("web");
    refuses_framing(web, web.outbound(), mesh.app("orders")).await;
    mesh.as_workload("web")
        .get("orders", "/after-framing")
        .await
        .is_ok();
}

#[tokio::test]
async fn broken_framing_at_a_plain_inbound_address_is_refused_and_reaches_no_program() {
    let app = App::http().await;
    let everything = "@id(\"all\")\n@reason(\"A test.\")\npermit(principal, action, resource);\n";
    let proxy = Standalone::sidecar_of("orders", &app, everything);
    let proxy = proxy.start().await;
    let inbound = proxy.proxy().inbound();
    refuses_framing(proxy.proxy(), inbound, &app).await;
    Client::new(inbound, "shop")
        .get("orders", "/good")
        .await
        .is_ok();
    assert_eq!(app.seen().len(), 1);
}

#[tokio::test]
async fn a_body_that_breaks_after_its_head_was_forwarded_does_not_arrive_complete() {
    let mesh = mesh().await;
    let web = mesh.as_workload("web");
    let start = async |path: &str| {
        let mut stream = web.tcp().await;
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: orders.shop\r\ntransfer-encoding: chunked\r\n\
             connection: close\r\n\r\n5\r\nfirst\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        until("the program has the head", async || {
            mesh.seen_at("orders", path).len() == 1
        })
        .await;
        stream
    };
    let finish = async |mut stream: Connection, rest: &str| {
        let mut answer = Vec::new();
        limit("the end of a connection", async {
            stream.write_all(rest.as_bytes()).await.unwrap();
            let _ = stream.read_to_end(&mut answer).await;
        })
        .await;
        String::from_utf8_lossy(&answer).into_owned()
    };
    let ended = async |path: &str| {
        until_some("the body has ended", async || {
            let body = mesh.seen_at("orders", path)[0].body;
            (body != BodyState::Open).then_some(body)
        })
        .await
    };

    let good = finish(start("/late/good").await, "0\r\n\r\n").await;
    assert!(good.starts_with("HTTP/1.1 200 "), "{good}");
    assert_eq!(ended("/late/good").await, BodyState::Complete);
    for (number, (what, rest)) in [
        ("a chunk size with a sign", "+5\r\nhello\r\n0\r\n\r\n"),
        ("a chunk size in 0x", "0x5\r\nhello\r\n0\r\n\r\n"),
        ("a chunk longer than its size", "3\r\nhello\r\n0\r\n\r\n"),
        ("a chunk ended by a line feed", "5\nhello\r\n0\r\n\r\n"),
        (
            "a size that overflows",
            "fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        ),
        ("a trailer that frames", "0\r\ncontent-length: 3\r\n\r\n"),
    ]
    .into_iter()
    .enumerate()
    {
        let path = format!("/late/{number}");
        let answer = finish(start(&path).await, rest).await;
        let reply = Reply::from_http1(&answer);
        reply.is_problem(StatusCode::BAD_REQUEST, "http.framing");
        assert_eq!(ended(&path).await, BodyState::Broken, "{what}");
        mesh.log_of("web", &reply)
            .await
            .has("reason", "http.framing")
            .has("path", &path);
    }
}

#[tokio::test]
async fn bytes_after_a_broken_request_on_its_connection_are_not_read() {
    let mesh = mesh().await;
    let web = mesh.sidecar("web");
    let smuggled = Attempt::raw(
        web.outbound(),
        "/smuggled",
        b"POST /smuggled HTTP/1.1\r\nhost: orders.shop\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n\
          GET /smuggled HTTP/1.1\r\nhost: orders.shop\r\n\r\n",
    );
    Refusals::by(web, mesh.app("orders"))
        .each([("two requests", smuggled, 400, "http.framing")])
        .await;
}

#[tokio::test]
async fn oversized_heads_are_refused_while_they_arrive() {
    let mesh = mesh().await;
    let web = mesh.sidecar("web");
    let many: String = (0..150)
        .map(|number| format!("x-{number}: 1\r\n"))
        .collect();
    let head = |line: &str, fields: &str| {
        format!("GET {line} HTTP/1.1\r\nhost: orders.shop\r\n{fields}\r\n")
    };
    Refusals::by(web, mesh.app("orders"))
        .each(
            [
                (
                    "a long target",
                    head(&format!("/large-{}", "x".repeat(10_000)), ""),
                    414,
                ),
                (
                    "a long value",
                    head("/large", &format!("x: {}\r\n", "x".repeat(80_000))),
                    431,
                ),
                ("many fields", head("/large", &many), 431),
                ("a line that never ends", "x".repeat(100_000), 414),
            ]
            .map(|(name, bytes, status)| {
                let attempt = Attempt::raw(web.outbound(), "/large", bytes);
                (name, attempt, status, "http.limit")
            }),
        )
        .await;
}

#[tokio::test]
async fn trace_and_connect_are_405() {
    let mesh = mesh().await;
    let web = mesh.sidecar("web");
    let connect =
        b"CONNECT orders.shop:80 HTTP/1.1\r\nhost: orders.shop:80\r\nconnection: close\r\n\r\n";
    let trace = b"TRACE /trace HTTP/1.1\r\nhost: orders.shop\r\nconnection: close\r\n\r\n";
    Refusals::by(web, mesh.app("orders"))
        .each(
            [
                ("TRACE", trace.as_slice(), "/trace"),
                ("CONNECT", connect, "orders.shop:80"),
            ]
            .map(|(name, bytes, path)| {
                let attempt = Attempt::raw(web.outbound(), path, bytes);
                (name, attempt, 405, "http.method")
            }),
        )
        .await;
}
