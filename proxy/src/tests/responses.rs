//! What a program's response cannot do, and a request whose handling panics.

use std::{cell::RefCell, rc::Rc};

use http::Request;
use hyper::body::Incoming;
use merlon_policy::principal::Principal;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::streams;
use crate::{
    downstream::{connection, peer::Peer},
    inbound,
    protocol::denial::Denial,
    request::{checks::stage::Admitted, forwarded_response::ForwardedResponse},
    telemetry::metrics::Direction,
    tests::harness::*,
};

/// A program that answers each connection's first request with these bytes.
async fn answering(bytes: &'static str) -> Program {
    Program::raw(async move |mut stream: TcpStream| {
        streams::read_head(&mut stream).await;
        let _ = stream.write_all(bytes.as_bytes()).await;
        let _ = stream.shutdown().await;
    })
    .await
}

#[test]
fn a_switch_that_was_not_requested_is_502_and_none_of_its_bytes_pass() {
    run(async {
        let program = answering(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nsecret",
        )
        .await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        let ask = b"GET /plain HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n";
        let answer = raw(pair.web.outbound, ask).await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
        assert!(answer.contains("upstream.protocol"), "{answer}");
        assert!(!answer.contains("secret"), "{answer}");
        let line = pair.orders.log.for_path("/plain").await;
        assert_eq!(
            (&line["status"], &line["reason"]),
            (&502.into(), &"upstream.protocol".into())
        );
    });
}

#[test]
fn informational_responses_are_not_forwarded() {
    run(async {
        let program = answering(
            "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </secret>\r\n\r\n\
             HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        )
        .await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        let ask = b"GET / HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n";
        let answer = raw(pair.web.outbound, ask).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
        assert!(!answer.contains("/secret"), "{answer}");
        assert!(answer.ends_with("\r\n\r\nok"), "{answer}");
    });
}

/// A program that keeps what it reads up to the end of a chunked body, and answers with these bytes.
async fn keeping(answer: &'static str) -> (Program, Rc<RefCell<String>>) {
    let kept = Rc::new(RefCell::new(String::new()));
    let keep = Rc::clone(&kept);
    let program = Program::raw(async move |mut stream: TcpStream| {
        let mut read = streams::read_head(&mut stream).await;
        if read.contains("chunked") {
            while !read.contains("\r\n0\r\n") || !read.ends_with("\r\n\r\n") {
                read.push(char::from(stream.read_u8().await.unwrap()));
            }
        }
        *keep.borrow_mut() = read;
        let _ = stream.write_all(answer.as_bytes()).await;
        let _ = stream.shutdown().await;
    })
    .await;
    (program, kept)
}

#[test]
fn request_trailers_over_http1_pass_only_if_they_are_announced() {
    run(async {
        let (program, kept) = keeping("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        for (announced, passes) in [("", false), ("Trailer: x-checksum\r\n", true)] {
            let ask = format!(
                "POST / HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n{announced}\
                 Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx-checksum: seven\r\n\r\n"
            );
            let answer = raw(pair.web.outbound, ask.as_bytes()).await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            let kept = kept.borrow();
            assert!(kept.contains("hello"), "{kept}");
            assert_eq!(kept.contains("x-checksum: seven"), passes, "{kept}");
        }
    });
}

#[test]
fn response_trailers_over_http1_pass_only_to_a_client_that_accepts_them() {
    run(async {
        let (program, _) = keeping(
            "HTTP/1.1 200 OK\r\nTrailer: x-checksum\r\nTransfer-Encoding: chunked\r\n\r\n\
             5\r\nhello\r\n0\r\nx-checksum: seven\r\n\r\n",
        )
        .await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        for (accepted, passes) in [
            ("Connection: close\r\n", false),
            ("Connection: close, TE\r\nTE: trailers\r\n", true),
        ] {
            let ask = format!("GET / HTTP/1.1\r\nHost: orders\r\n{accepted}\r\n");
            let answer = raw(pair.web.outbound, ask.as_bytes()).await;
            assert!(answer.contains("hello"), "{answer}");
            assert_eq!(answer.contains("x-checksum: seven"), passes, "{answer}");
        }
    });
}

#[test]
fn a_panic_ends_one_request_with_500_and_one_log_line() {
    run(async {
        let program = Program::echo().await;
        let state = State::new("shop/orders").with_service(service(
            "shop/orders",
            80,
            program.port(),
            "http",
            PERMIT_ALL,
        ));
        let node = Node::start(None, &state);
        let worker = node.context();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let context = Rc::clone(&worker);
        tokio::task::spawn_local(async move {
            let (stream, from) = listener.accept().await.unwrap();
            let peer = Peer::new(&context, Direction::Inbound, from, Principal::Anonymous);
            // The last step of an admitted request panics.
            let serve = |peer: Rc<Peer>, request: Request<Incoming>, broken: Option<Denial>| {
                let forward =
                    async |admitted: Admitted<'_>, _: &Peer| -> Result<ForwardedResponse, Denial> {
                        let path = admitted.call.exchange.uri.path().to_owned();
                        assert_ne!(path, "/panic", "of the test");
                        Ok(ForwardedResponse::send_body())
                    };
                inbound::serve_with(peer, request, broken, forward)
            };
            connection::serve_plain(&context, stream, Rc::new(peer), serve).await;
        });
        let both = "GET /panic HTTP/1.1\r\nHost: orders\r\n\r\n\
                    GET /next HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n";
        let answer = raw(address, both.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 500 "), "{answer}");
        assert!(answer.contains("internal.panic"), "{answer}");
        assert!(!answer.contains("of the test"), "{answer}");
        assert!(answer.contains("HTTP/1.1 204 "), "{answer}");
        node.log.for_path("/next").await;
        let lines = node.log.lines();
        assert_eq!(lines.len(), 2, "{lines:#?}");
        let line = node.log.for_path("/panic").await;
        assert_eq!(
            (&line["status"], &line["reason"], &line["method"]),
            (&500.into(), &"internal.panic".into(), &"GET".into())
        );
        assert_eq!(worker.in_flight.get(), 0);
        assert_eq!(node.metrics.active_requests.value(Direction::Inbound), 0);
        program.assert_not_reached();
    });
}
