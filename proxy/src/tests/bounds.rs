//! Bounds and time limits on the side of clients and other proxies. Each test sets the bound that it is about to a small
//! value, and shows that what is beyond it does not reach the program.

use std::{cell::Cell, io, net::SocketAddr, rc::Rc, time::Duration};

use http::Request;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use merlon_certs::MERLON_TCP;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::{
    downstream::listener::{self, Accept},
    inbound,
    limits::Limits,
    telemetry::metrics::{Direction, Handshake, worker::WorkerMetrics},
    tests::harness::*,
    upstream::dial,
};

/// Short enough for a test to wait for its end, and nothing fails when it takes longer.
const SHORT: Duration = Duration::from_millis(50);

/// A proxy without identity in front of the program: its inbound listener takes plain connections.
fn plain(program: &Program, limits: Limits) -> Node {
    let orders = service("shop/orders", 80, program.port(), "http", PERMIT_ALL);
    Node::with_limits(
        None,
        &State::new("shop/orders").with_service(orders),
        limits,
    )
}

/// A program that holds its responses until the sender says so.
async fn holding() -> (Program, tokio::sync::watch::Sender<bool>) {
    let (release, held) = tokio::sync::watch::channel(false);
    let program = Program::serving(async move |_| {
        held.clone().wait_for(|go| *go).await.unwrap();
        http::Response::new(full("done"))
    })
    .await;
    (program, release)
}

/// A request on a connection of HTTP/1.1 that stays open. `None` when the other side closes it instead.
async fn ask(stream: &mut TcpStream, path: &str) -> Option<String> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: orders\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    // The echo ends with the host and a space.
    while !answer.ends_with("orders ") {
        let mut some = [0; 1_024];
        match stream.read(&mut some).await {
            Ok(0) | Err(_) => return None,
            Ok(read) => answer.push_str(std::str::from_utf8(&some[..read]).unwrap()),
        }
    }
    Some(answer)
}

#[test]
fn a_connection_beyond_the_limit_is_closed_and_one_that_ends_makes_room() {
    run(async {
        let program = Program::echo().await;
        let limits = Limits {
            connections: 2,
            ..Limits::default()
        };
        let node = plain(&program, limits);
        let connect = async || TcpStream::connect(node.inbound).await.unwrap();
        let (mut one, mut two) = (connect().await, connect().await);
        assert!(ask(&mut one, "/one").await.is_some());
        assert!(ask(&mut two, "/two").await.is_some());
        assert_eq!(ask(&mut connect().await, "/three").await, None);
        assert_eq!(node.metrics.accept_errors.value(), 1);
        assert_eq!(program.requests.get(), 2, "the third does not arrive");
        assert!(
            ask(&mut two, "/again").await.is_some(),
            "open ones are not affected"
        );
        drop(one);
        let open = || node.metrics.open_connections.value(Direction::Inbound);
        until("the first connection ends", || open() == 1).await;
        assert!(ask(&mut connect().await, "/four").await.is_some());
    });
}

/// A listener that lacks descriptors at first.
struct Failing {
    failures: Cell<u64>,
    listener: TcpListener,
}

impl Accept for Failing {
    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        match self.failures.get().checked_sub(1) {
            Some(left) => {
                self.failures.set(left);
                Err(rustix::io::Errno::MFILE.into())
            }
            None => self.listener.accept().await,
        }
    }
}

#[test]
fn after_a_failure_to_accept_there_is_a_pause_and_then_connections_are_accepted() {
    run(async {
        let program = Program::echo().await;
        let serve = async |accept_pause, failures| {
            let limits = Limits {
                accept_pause,
                ..Limits::default()
            };
            let local = plain(&program, limits).context();
            let failing = Failing {
                failures: Cell::new(failures),
                listener: TcpListener::bind("127.0.0.1:0").await.unwrap(),
            };
            let address = failing.listener.local_addr().unwrap();
            let serving = Rc::clone(&local);
            tokio::task::spawn_local(async move {
                listener::serve(&serving, &failing, inbound::connection).await;
            });
            (local, address)
        };
        let hour = Duration::from_secs(3_600);
        let (pausing, _) = serve(hour, 2).await;
        let (recovered, address) = serve(SHORT, 3).await;
        let answer = http1(address, get("orders", "/")).await;
        assert_eq!(answer.body, "GET / orders ");
        assert_eq!(recovered.metrics.accept_errors.value(), 3);
        let failures = pausing.metrics.accept_errors.value();
        assert_eq!(failures, 1, "it does not try again during the pause");
    });
}

#[test]
fn a_handshake_beyond_the_limit_is_refused_and_one_that_ends_makes_room() {
    run(async {
        let program = Program::echo().await;
        let orders = Limits {
            handshakes: 1,
            ..Limits::default()
        };
        let pair = Pair::with_limits(&program, "http", Limits::default(), orders);
        let count = |result| {
            let handshakes = &pair.orders.metrics.handshakes;
            handshakes.value(Direction::Inbound, result)
        };
        // It occupies the only place, and sends nothing.
        let silent = TcpStream::connect(pair.orders.inbound).await.unwrap();
        http1(pair.web.outbound, get("orders", "/beyond"))
            .await
            .assert_refused(503, "upstream.connect");
        assert_eq!(count(Handshake::Refused), 1);
        assert_eq!(count(Handshake::Done), 0);
        program.assert_not_reached();
        drop(silent);
        until("the silent one has failed", || {
            count(Handshake::Refused) == 2
        })
        .await;
        let answer = http1(pair.web.outbound, get("orders", "/after")).await;
        assert_eq!(answer.status, 200);
        assert_eq!(count(Handshake::Done), 1);
    });
}

#[test]
fn a_handshake_that_does_not_end_in_time_is_closed() {
    run(async {
        let program = Program::echo().await;
        let orders = Limits {
            handshake_timeout: SHORT,
            ..Limits::default()
        };
        let pair = Pair::with_limits(&program, "http", Limits::default(), orders);
        let count = |result| {
            let handshakes = &pair.orders.metrics.handshakes;
            handshakes.value(Direction::Inbound, result)
        };
        for (number, start) in [&b""[..], b"\x16\x03\x01"].into_iter().enumerate() {
            let mut stream = TcpStream::connect(pair.orders.inbound).await.unwrap();
            stream.write_all(start).await.unwrap();
            assert_eq!(until_closed(stream).await, "");
            assert_eq!(count(Handshake::Timeout), number as u64 + 1);
        }
        assert_eq!(count(Handshake::Refused), 0);
        program.assert_not_reached();
    });
}

#[test]
fn a_request_beyond_those_in_flight_is_503_overload_in_both_directions() {
    let few = Limits {
        in_flight: 1,
        ..Limits::default()
    };
    for (web, orders) in [(few, Limits::default()), (Limits::default(), few)] {
        run(async move {
            let (program, release) = holding().await;
            let pair = Pair::with_limits(&program, "http", web, orders);
            let full = if web == few { &pair.web } else { &pair.orders };
            let ask = |path| http1(pair.web.outbound, get("orders", path));
            let held = tokio::task::spawn_local(ask("/held"));
            until("the first arrives", || program.requests.get() == 1).await;
            let answer = ask("/beyond").await;
            answer.assert_refused(503, "overload");
            assert_eq!(answer.headers["retry-after"], "1");
            assert_eq!(program.requests.get(), 1, "the second does not arrive");
            let line = full.log.line(|line| line["reason"] == "overload").await;
            assert_eq!(line["status"], 503);
            release.send(true).unwrap();
            assert_eq!(held.await.unwrap().status, 200);
            assert_eq!(ask("/after").await.status, 200);
        });
    }
}

#[test]
fn a_head_that_is_not_complete_in_time_is_408_and_ends_the_connection() {
    run(async {
        let program = Program::echo().await;
        let limits = Limits {
            head_timeout: SHORT,
            ..Limits::default()
        };
        let node = plain(&program, limits);
        let answer = raw(node.inbound, b"GET /slow HTTP/1.1\r\nhost: orders\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
        assert!(answer.contains(r#""reason":"http.timeout""#), "{answer}");
        program.assert_not_reached();
        let line = node.log.line(|line| line["status"] == 408).await;
        assert_eq!(line["reason"], "http.timeout");
    });
}

#[test]
fn a_body_that_validation_waits_for_too_long_is_408() {
    run(async {
        let program = Program::echo().await;
        let limits = Limits {
            body_timeout: SHORT,
            ..Limits::default()
        };
        let mut orders = service("shop/orders", 80, program.port(), "http", PERMIT_ALL);
        orders["validation"] = serde_json::json!([{ "from": "shop/forms", "spec": {
            "routes": [{ "path": "/orders", "methods": ["POST"], "contentTypes": ["application/json"],
                "body": { "type": "object" } }] } }]);
        let state = State::new("shop/orders").with_service(orders);
        let node = Node::with_limits(None, &state, limits);
        let head = "POST /orders HTTP/1.1\r\nhost: orders\r\ncontent-type: application/json\r\ncontent-length: 20\r\n\r\n";
        let answer = raw(node.inbound, format!("{head}{{").as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
        assert!(answer.contains(r#""reason":"http.timeout""#), "{answer}");
        program.assert_not_reached();
        let line = node.log.for_path("/orders").await;
        assert_eq!(
            (line["status"].as_u64(), line["reason"].as_str()),
            (Some(408), Some("http.timeout"))
        );
    });
}

#[test]
fn an_idle_connection_is_closed_before_its_first_request_and_after_a_response() {
    run(async {
        let program = Program::echo().await;
        let idle_after = |idle_timeout| {
            let limits = Limits {
                idle_timeout,
                ..Limits::default()
            };
            plain(&program, limits)
        };
        let node = idle_after(SHORT);
        let connect = async || TcpStream::connect(node.inbound).await.unwrap();
        assert_eq!(until_closed(connect().await).await, "");
        // A part of the preface of HTTP/2 is neither a version nor a head.
        let mut preface = connect().await;
        preface.write_all(b"PRI * HT").await.unwrap();
        assert_eq!(until_closed(preface).await, "");
        program.assert_not_reached();
        assert_eq!(node.metrics.open_connections.value(Direction::Inbound), 0);
        // On a busy machine, the first request may come later than the limit.
        for times in (0..10).map(|doublings| 1 << doublings) {
            let node = idle_after(SHORT * times);
            let mut used = TcpStream::connect(node.inbound).await.unwrap();
            if ask(&mut used, "/").await.is_none() {
                continue;
            }
            assert_eq!(until_closed(used).await, "");
            assert_eq!(node.metrics.open_connections.value(Direction::Inbound), 0);
            return;
        }
        panic!("no request was in time");
    });
}

#[test]
fn an_idle_http2_connection_is_closed_with_goaway_and_one_with_an_open_request_stays() {
    run(async {
        let (program, release) = holding().await;
        let limits = Limits {
            // The request below must begin within this time.
            idle_timeout: Duration::from_secs(2),
            ..Limits::default()
        };
        let node = plain(&program, limits);
        let mut busy = RawH2::connect(node.inbound).await;
        busy.send(&request(1, "/held")).await;
        until("the request arrives", || program.requests.get() == 1).await;
        // Several times as long as the limit, as two others show, one after the other.
        for _ in 0..2 {
            let mut idle = RawH2::connect(node.inbound).await;
            assert_eq!(idle.next(GOAWAY).await.goaway_code(), 0);
            // The client need not answer for the connection to end.
            idle.rest().await;
        }
        release.send(true).unwrap();
        assert_eq!(busy.next(HEADERS).await.stream, 1);
        assert_eq!(busy.next(GOAWAY).await.goaway_code(), 0);
        busy.rest().await;
        assert_eq!(program.requests.get(), 1);
    });
}

#[test]
fn a_tunnel_whose_preamble_does_not_arrive_in_time_is_closed() {
    run(async {
        let program = Program::raw(async |_| {}).await;
        let orders = Limits {
            preamble_timeout: SHORT,
            ..Limits::default()
        };
        let pair = Pair::with_limits(&program, "tcp", Limits::default(), orders);
        let web = pair.ca.identity("shop/web");
        let expected = spiffe("shop/orders").parse().unwrap();
        let (limits, metrics) = (Limits::default(), WorkerMetrics::default());
        let dialled = dial::mesh(
            pair.orders.inbound,
            &expected,
            &web,
            MERLON_TCP,
            &limits,
            &metrics,
        );
        let mut tunnel = dialled.await.unwrap();
        // Two bytes of length, and a part of the text.
        tunnel.write_all(b"\x00\x26service=shop").await.unwrap();
        tunnel.flush().await.unwrap();
        assert_eq!(until_closed(tunnel).await, "");
        program.assert_not_reached();
        let line = pair.orders.log.line(|line| line["protocol"] == "tcp").await;
        assert_eq!(
            (line["status"].as_u64(), line["reason"].as_str()),
            (Some(404), Some("http.no_route"))
        );
    });
}

/// A program, and how many bodies arrived whole.
async fn counting_bodies() -> (Program, Rc<Cell<usize>>) {
    let whole = Rc::new(Cell::new(0));
    let arrived = Rc::clone(&whole);
    let program = Program::serving(async move |request: Request<Incoming>| {
        if request.into_body().collect().await.is_ok() {
            arrived.set(arrived.get() + 1);
        }
        http::Response::new(full("done"))
    });
    (program.await, whole)
}

#[test]
fn trailers_of_8_kib_pass_and_one_byte_more_ends_the_request() {
    run(async {
        let (program, whole) = counting_bodies().await;
        let node = plain(&program, Limits::default());
        let with_trailers = |bytes: usize| {
            // Without the line end, which does not count.
            let value = "x".repeat(bytes - "a: ".len());
            format!(
                "POST / HTTP/1.1\r\nhost: orders\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n0\r\na: {value}\r\n\r\n"
            )
        };
        let answer = raw(node.inbound, with_trailers(8 << 10).as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert_eq!(whole.get(), 1);
        let answer = raw(node.inbound, with_trailers((8 << 10) + 1).as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        assert!(answer.contains(r#""reason":"http.framing""#), "{answer}");
        assert_eq!(whole.get(), 1, "its body does not arrive whole");
    });
}

#[test]
fn chunk_extensions_of_16_kib_pass_and_one_byte_more_ends_the_request() {
    run(async {
        let (program, whole) = counting_bodies().await;
        let node = plain(&program, Limits::default());
        let with_extension = |bytes: usize| {
            // The semicolon counts, too.
            let extension = "x".repeat(bytes - ";".len());
            format!(
                "POST / HTTP/1.1\r\nhost: orders\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n5;{extension}"
            )
        };
        let longest = with_extension(16 << 10) + "\r\nhello\r\n0\r\n\r\n";
        let answer = raw(node.inbound, longest.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert_eq!(whole.get(), 1);
        let answer = raw(node.inbound, with_extension((16 << 10) + 1).as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        assert!(answer.contains(r#""reason":"http.framing""#), "{answer}");
        assert_eq!(whole.get(), 1, "its body does not arrive whole");
    });
}
