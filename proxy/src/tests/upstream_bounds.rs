//! Bounds and time limits on the side of upstreams: programs, other proxies and hosts outside the mesh.

use std::{cell::Cell, net::SocketAddr, rc::Rc, time::Duration};

use http::{Request, Response};
use merlon_config::snapshot::Endpoint;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    sync::watch,
};

use crate::{
    limits::Limits,
    telemetry::metrics::{Direction, FetchResult, Handshake},
    tests::harness::*,
    upstream::body::RequestBody,
};

/// Short enough for a test to wait for its end, and nothing fails when it takes longer.
const SHORT: Duration = Duration::from_millis(50);

/// A proxy without identity in front of a program at this address.
fn plain(program: SocketAddr, protocol: &str, limits: Limits) -> Node {
    let orders = service("shop/orders", 80, program.port(), protocol, PERMIT_ALL);
    Node::with_limits(
        None,
        &State::new("shop/orders").with_service(orders),
        limits,
    )
}

/// An address that refuses connections, and that no other test can bind while the socket is there.
fn closed_port() -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    socket
}

#[test]
fn a_program_that_cannot_be_connected_to_in_time_is_503() {
    run(async {
        let (address, _queue) = full_queue().await;
        let limits = Limits {
            connect_timeout: SHORT,
            ..Limits::default()
        };
        let node = plain(address, "http", limits);
        let answer = http1(node.inbound, get("orders", "/late")).await;
        answer.assert_refused(503, "upstream.connect_timeout");
        let line = node.log.for_path("/late").await;
        assert_eq!(line["reason"], "upstream.connect_timeout");
        assert_eq!(line["upstream"], address.to_string());
        let connections = &node.metrics.upstream_connections;
        assert_eq!(connections.value(FetchResult::Failed), 1);
        assert_eq!(connections.value(FetchResult::Ok), 0);
    });
}

#[test]
fn a_peer_whose_handshake_does_not_end_in_time_is_503() {
    run(async {
        // It accepts connections and sends nothing.
        let mute = Program::raw(async |stream| {
            std::future::pending::<()>().await;
            drop(stream);
        })
        .await;
        let limits = Limits {
            upstream_handshake_timeout: SHORT,
            ..Limits::default()
        };
        let to = destination("shop/orders", 80, "http", mute.address, Some("shop/orders"));
        let state = State::new("shop/web").with_destination(to);
        let web = Node::with_limits(Some(Ca::new().identity("shop/web")), &state, limits);
        let answer = http1(web.outbound, get("orders", "/late")).await;
        answer.assert_refused(503, "upstream.connect_timeout");
        let handshakes = &web.metrics.handshakes;
        assert_eq!(handshakes.value(Direction::Outbound, Handshake::Timeout), 1);
        let line = web.log.for_path("/late").await;
        assert_eq!(line["reason"], "upstream.connect_timeout");
    });
}

#[test]
fn an_http2_program_that_does_not_answer_pings_is_504() {
    run(async {
        // It reads everything and sends nothing.
        let mute = Program::raw(async |mut stream: TcpStream| {
            let mut some = [0; 4_096];
            while stream.read(&mut some).await.is_ok_and(|read| read > 0) {}
        })
        .await;
        let limits = Limits {
            upstream_keep_alive: SHORT,
            ..Limits::default()
        };
        let node = plain(mute.address, "h2c", limits);
        let request = Request::get("http://orders/silent");
        let answer = h2c(node.inbound, request.body(RequestBody::Empty).unwrap()).await;
        answer.assert_refused(504, "upstream.timeout");
        let line = node.log.for_path("/silent").await;
        assert_eq!(
            (line["status"].as_u64(), line["reason"].as_str()),
            (Some(504), Some("upstream.timeout"))
        );
    });
}

#[test]
fn requests_beyond_the_streams_of_a_connection_get_another_connection() {
    run(async {
        let (release, held) = watch::channel(false);
        let program = Program::serving(async move |_| {
            held.clone().wait_for(|go| *go).await.unwrap();
            Response::new(full("done"))
        })
        .await;
        let limits = Limits {
            upstream_streams: 2,
            ..Limits::default()
        };
        let node = plain(program.address, "h2c", limits);
        let connections = || node.metrics.upstream_connections.value(FetchResult::Ok);
        let ask = || {
            let request = Request::get("http://orders/").body(RequestBody::Empty);
            tokio::task::spawn_local(h2c(node.inbound, request.unwrap()))
        };
        let within = [ask(), ask()];
        until("two requests arrive", || program.requests.get() == 2).await;
        assert_eq!(connections(), 1);
        let beyond = ask();
        until("the third arrives", || program.requests.get() == 3).await;
        assert_eq!(connections(), 2);
        release.send(true).unwrap();
        for answer in within.into_iter().chain([beyond]) {
            assert_eq!(answer.await.unwrap().status, 200);
        }
    });
}

#[test]
fn a_host_that_does_not_resolve_is_503() {
    run(async {
        let web = Node::start(None, &State::new("shop/web"));
        // A resolver answers for `.invalid` by itself (RFC 6761 §6.4).
        let answer = http1(web.outbound, get("nowhere.invalid.", "/nowhere")).await;
        answer.assert_refused(503, "upstream.dns");
        let line = web.log.for_path("/nowhere").await;
        assert_eq!(line["reason"], "upstream.dns");
    });
}

/// `pair` with a second endpoint of `orders` at a closed port.
fn add_closed_endpoint(pair: &Pair, closed: SocketAddr) {
    let mut state = pair.web_state.clone();
    let endpoints = &mut state.destinations[0].endpoints;
    endpoints.push(Endpoint {
        address: closed,
        ..endpoints[0].clone()
    });
    pair.web.apply(&state);
}

#[test]
fn a_failed_endpoint_is_skipped_for_the_given_time_and_then_tried_again() {
    run(async {
        let program = Program::echo().await;
        let failed = |pair: &Pair| {
            let connections = &pair.web.metrics.upstream_connections;
            connections.value(FetchResult::Failed)
        };
        let ask = async |pair: &Pair| {
            let answer = http1(pair.web.outbound, get("orders", "/")).await;
            assert_eq!(answer.status, 200);
        };
        for (cooldown, again) in [(Duration::from_secs(600), false), (Duration::ZERO, true)] {
            let web = Limits {
                failure_cooldown: cooldown,
                ..Limits::default()
            };
            let pair = Pair::with_limits(&program, "http", web, Limits::default());
            let closed = closed_port();
            add_closed_endpoint(&pair, closed.local_addr().unwrap());
            while failed(&pair) == 0 {
                ask(&pair).await;
            }
            // Of 40 requests at least one selects it, unless it is skipped: it has no streams, as the other.
            for _ in 0..40 {
                ask(&pair).await;
            }
            assert_eq!(failed(&pair) > 1, again, "{cooldown:?}");
        }
    });
}

#[test]
fn an_endpoint_that_recovers_is_used_again_after_the_given_time() {
    run(async {
        let program = Program::echo().await;
        let web = Limits {
            failure_cooldown: SHORT,
            ..Limits::default()
        };
        let pair = Pair::with_limits(&program, "http", web, Limits::default());
        let socket = closed_port();
        let address = socket.local_addr().unwrap();
        add_closed_endpoint(&pair, address);
        let failed = || {
            let connections = &pair.web.metrics.upstream_connections;
            connections.value(FetchResult::Failed)
        };
        let ask = async || {
            let answer = http1(pair.web.outbound, get("orders", "/")).await;
            assert_eq!(answer.status, 200);
        };
        while failed() == 0 {
            ask().await;
        }
        // It is up again, and passes connections on to the other proxy.
        let listener = socket.listen(16).unwrap();
        let (inbound, recovered) = (pair.orders.inbound, Rc::new(Cell::new(false)));
        let reached = Rc::clone(&recovered);
        tokio::task::spawn_local(async move {
            let (mut from, _) = listener.accept().await.unwrap();
            reached.set(true);
            let mut to = TcpStream::connect(inbound).await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
        });
        while !recovered.get() {
            ask().await;
        }
    });
}

#[test]
fn an_idle_upstream_connection_is_closed() {
    run(async {
        let ended = Rc::new(Cell::new(0));
        let count = Rc::clone(&ended);
        let program = Program::raw(async move |mut stream: TcpStream| {
            let mut some = [0; 4_096];
            while stream.read(&mut some).await.is_ok_and(|read| read > 0) {
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ndone";
                stream.write_all(answer).await.unwrap();
            }
            count.set(count.get() + 1);
        })
        .await;
        let limits = Limits {
            upstream_idle_timeout: SHORT,
            tidy_interval: SHORT,
            ..Limits::default()
        };
        let pair = Pair::with_limits(&program, "http", limits, limits);
        let inbound = || {
            pair.orders
                .metrics
                .open_connections
                .value(Direction::Inbound)
        };
        let answer = http1(pair.web.outbound, get("orders", "/")).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "done"));
        until("the connection to the program closes", || ended.get() == 1).await;
        until("the connection between the proxies closes", || {
            inbound() == 0
        })
        .await;
        // The next request opens new ones.
        let answer = http1(pair.web.outbound, get("orders", "/")).await;
        assert_eq!(answer.status, 200);
        assert_eq!(program.requests.get(), 2, "connections to the program");
    });
}
