//! Bounds of HTTP/2 on real connections, with a client that sends what no library sends.

use std::{cell::Cell, rc::Rc, time::Duration};

use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use crate::{limits::Limits, tests::harness::*};

/// A proxy in front of the program, for HTTP/2 without TLS.
fn plain(program: &Program, limits: Limits) -> Node {
    let orders = service("shop/orders", 80, program.port(), "http", PERMIT_ALL);
    Node::with_limits(
        None,
        &State::new("shop/orders").with_service(orders),
        limits,
    )
}

/// A program that never answers.
async fn silent() -> Program {
    Program::serving(async |_| std::future::pending().await).await
}

/// Asserts that the connection ends with GOAWAY and this code.
async fn assert_goaway(client: RawH2, code: u32) {
    let frames = client.rest().await;
    let mut goaways = frames.iter().filter(|frame| frame.kind == GOAWAY);
    let goaway = goaways.next().expect("GOAWAY is sent");
    assert_eq!(goaway.goaway_code(), code);
}

/// How often the program got a request to this path.
fn requests_to(program: &Program, path: &str) -> usize {
    let seen = program.seen.borrow();
    seen.iter().filter(|head| head.uri.path() == path).count()
}

#[test]
fn the_settings_state_the_limits() {
    run(async {
        let program = Program::echo().await;
        let limits = Limits {
            h2_streams: 7,
            h2_stream_window: 70_000,
            h2_connection_window: 200_000,
            ..Limits::default()
        };
        let node = plain(&program, limits);
        let mut client = RawH2::connect(node.inbound).await;
        let settings = client.next(SETTINGS).await;
        assert_eq!(settings.setting(3), 7, "MAX_CONCURRENT_STREAMS");
        assert_eq!(settings.setting(4), 70_000, "INITIAL_WINDOW_SIZE");
        assert_eq!(settings.setting(6), 64 << 10, "MAX_HEADER_LIST_SIZE");
        let window = client.next(WINDOW_UPDATE).await;
        assert_eq!((window.stream, window.increment()), (0, 200_000 - 65_535));
    });
}

#[test]
fn a_stream_beyond_the_limit_is_refused_and_does_not_arrive() {
    run(async {
        let program = silent().await;
        let limits = Limits {
            h2_streams: 2,
            ..Limits::default()
        };
        let node = plain(&program, limits);
        let mut client = RawH2::connect(node.inbound).await;
        let streams = [request(1, "/1"), request(3, "/3"), request(5, "/beyond")];
        client.send(&streams.concat()).await;
        let refused = client.next(RST_STREAM).await;
        assert_eq!((refused.stream, refused.reset_code()), (5, REFUSED_STREAM));
        until("both arrive", || program.requests.get() == 2).await;
        assert_eq!(requests_to(&program, "/beyond"), 0);
    });
}

#[test]
fn data_beyond_the_window_of_a_stream_is_a_flow_control_error() {
    run(async {
        // It does not read the body.
        let program = silent().await;
        let limits = Limits {
            h2_stream_window: 1_000,
            ..Limits::default()
        };
        let node = plain(&program, limits);
        let mut client = RawH2::connect(node.inbound).await;
        // The window applies once the client has seen it.
        client.next(SETTINGS).await;
        client.send(&frame(SETTINGS, 1, 0, &[])).await;
        client.send(&start_of_request(1, "/flood")).await;
        for _ in 0..2 {
            client.send(&frame(DATA, 0, 1, &[b'x'; 1_000])).await;
        }
        let reset = client.next(RST_STREAM).await;
        assert_eq!((reset.stream, reset.reset_code()), (1, FLOW_CONTROL_ERROR));
    });
}

#[test]
fn data_beyond_the_window_of_a_connection_ends_it() {
    run(async {
        // The request waits for a connection to the program, so its body is not read.
        let (program, _queue) = full_queue().await;
        let orders = service("shop/orders", 80, program.port(), "http", PERMIT_ALL);
        let limits = Limits {
            h2_stream_window: 400_000,
            h2_connection_window: 200_000,
            connect_timeout: Duration::from_secs(3_600),
            ..Limits::default()
        };
        let state = State::new("shop/orders").with_service(orders);
        let node = Node::with_limits(None, &state, limits);
        let mut client = RawH2::connect(node.inbound).await;
        // The windows apply once the client has seen them.
        client.next(WINDOW_UPDATE).await;
        client.send(&frame(SETTINGS, 1, 0, &[])).await;
        client.send(&start_of_request(1, "/flood")).await;
        for _ in 0..20 {
            client.send(&frame(DATA, 0, 1, &[b'x'; 10_000])).await;
        }
        client.send(&ping()).await;
        client.next(PING).await;
        client.send(&frame(DATA, 0, 1, b"x")).await;
        assert_goaway(client, FLOW_CONTROL_ERROR).await;
    });
}

#[test]
fn streams_that_are_reset_before_they_are_accepted_end_the_connection() {
    run(async {
        let program = Program::echo().await;
        let limits = Limits {
            h2_pending_resets: 5,
            ..Limits::default()
        };
        let node = plain(&program, limits);
        let mut client = RawH2::connect(node.inbound).await;
        // CVE-2023-44487.
        let flood: Vec<u8> = (0..10)
            .flat_map(|number| {
                let stream = 2 * number + 1;
                [request(stream, "/reset"), cancel(stream)].concat()
            })
            .chain(request(21, "/after"))
            .collect();
        client.send(&flood).await;
        assert_goaway(client, ENHANCE_YOUR_CALM).await;
        program.assert_not_reached();
    });
}

#[test]
fn streams_that_the_proxy_must_reset_end_the_connection() {
    run(async {
        let program = Program::echo().await;
        let limits = Limits {
            h2_forced_resets: 3,
            ..Limits::default()
        };
        let node = plain(&program, limits);
        let mut client = RawH2::connect(node.inbound).await;
        let malformed = (0..4).flat_map(|number| malformed_request(2 * number + 1));
        let bytes: Vec<u8> = malformed.chain(request(9, "/after")).collect();
        client.send(&bytes).await;
        assert_goaway(client, ENHANCE_YOUR_CALM).await;
        program.assert_not_reached();
    });
}

#[test]
fn control_frames_beyond_the_limit_end_the_connection() {
    run(async {
        let program = Program::echo().await;
        let limits = Limits {
            h2_control_frames: 10,
            ..Limits::default()
        };
        let node = plain(&program, limits);
        // SETTINGS is the first of them.
        let pings = |count: usize| ping().repeat(count);
        let mut within = RawH2::connect(node.inbound).await;
        within
            .send(&[pings(9), request(1, "/within")].concat())
            .await;
        assert_eq!(within.next(HEADERS).await.stream, 1);
        let mut beyond = RawH2::connect(node.inbound).await;
        beyond
            .send(&[pings(10), request(1, "/beyond")].concat())
            .await;
        let frames = beyond.rest().await;
        assert!(
            frames.iter().all(|frame| frame.kind != HEADERS),
            "{frames:?}"
        );
        assert_eq!(requests_to(&program, "/within"), 1);
        assert_eq!(requests_to(&program, "/beyond"), 0);
    });
}

#[test]
fn resets_beyond_the_limit_end_the_connection() {
    run(async {
        let program = silent().await;
        let limits = Limits {
            h2_reset_frames: 3,
            ..Limits::default()
        };
        let node = plain(&program, limits);
        let mut client = RawH2::connect(node.inbound).await;
        for number in 0..3 {
            // One after the other, as from a peer whose callers cancel: each has arrived before it is reset.
            client.send(&request(2 * number + 1, "/cancelled")).await;
            let arrived = || requests_to(&program, "/cancelled") == number as usize + 1;
            until("the request arrives", arrived).await;
            client.send(&cancel(2 * number + 1)).await;
        }
        client.send(&request(7, "/within")).await;
        until("it arrives", || requests_to(&program, "/within") == 1).await;
        client
            .send(&[cancel(7), request(9, "/beyond")].concat())
            .await;
        client.rest().await;
        assert_eq!(requests_to(&program, "/beyond"), 0);
    });
}

#[test]
fn frames_of_an_earlier_window_do_not_count() {
    run(async {
        let program = Program::echo().await;
        let limits = Limits {
            h2_control_frames: 3,
            h2_frame_window: Duration::ZERO,
            ..Limits::default()
        };
        let node = plain(&program, limits);
        let mut client = RawH2::connect(node.inbound).await;
        client
            .send(&[ping().repeat(100), request(1, "/")].concat())
            .await;
        assert_eq!(client.next(HEADERS).await.stream, 1);
        assert_eq!(program.requests.get(), 1);
    });
}

#[test]
fn too_large_or_too_many_trailers_end_the_request() {
    run(async {
        let whole = Rc::new(Cell::new(0));
        let arrived = Rc::clone(&whole);
        let program = Program::serving(async move |request: Request<Incoming>| {
            if request.into_body().collect().await.is_ok() {
                arrived.set(arrived.get() + 1);
            }
            Response::new(full("done"))
        })
        .await;
        let node = plain(&program, Limits::default());
        let (large, larger) = ("x".repeat((8 << 10) - 3), "x".repeat((8 << 10) - 2));
        let many = [("a", "x"); 21];
        for (fields, status) in [
            (&[("a", &*large)][..], 200),
            (&many[..20], 200),
            (&[("a", &*larger)][..], 400),
            (&many[..], 400),
        ] {
            let before = whole.get();
            let mut client = RawH2::connect(node.inbound).await;
            client.send(&start_of_request(1, "/")).await;
            client.send(&trailers(1, fields)).await;
            let answer = client.next(HEADERS).await;
            assert_eq!(answer.status(), status);
            let expected = usize::from(status == 200);
            assert_eq!(whole.get() - before, expected);
        }
    });
}
