//! Ordinary requests through a pair of proxies.

use http::{HeaderValue, Request};
use merlon_certs::MERLON_H2;
use merlon_config::snapshot::Endpoint;
use merlon_test_support::ports::{self, Refusing};
use rustls::AlertDescription;
use tokio::{io::AsyncReadExt as _, net::TcpStream};

use crate::{
    limits::Limits,
    telemetry::metrics::{Direction, Handshake, worker::WorkerMetrics},
    tests::harness::*,
    upstream::{body::RequestBody, dial},
};

#[test]
fn a_request_arrives_unchanged_and_both_proxies_log_it() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        let answer = http1(pair.web.outbound, get("orders.shop", "/a?b=c")).await;
        assert_eq!(
            (answer.status, answer.body.as_str()),
            (200, "GET /a?b=c orders.shop ")
        );
        let seen = program.last_request();
        assert_eq!(seen.version, http::Version::HTTP_11);
        assert_eq!(seen.headers["merlon-caller"], spiffe("shop/web"));
        assert!(seen.headers.contains_key("traceparent"));
        assert!(!seen.headers.contains_key("merlon-peer"));
        let inbound = pair.orders.log.for_path("/a").await;
        assert_eq!(inbound["src"], spiffe("shop/web"));
        assert_eq!(inbound["dst"], "shop/orders:80");
        assert_eq!(inbound["policy"], "shop/orders#all");
        assert_eq!(inbound["status"], 200);
        assert_eq!(inbound["direction"], "inbound");
        let outbound = pair.web.log.for_path("/a").await;
        assert_eq!(outbound["trace_id"], inbound["trace_id"]);
        assert_eq!(outbound["direction"], "outbound");
        assert_eq!(outbound["src"], spiffe("shop/web"));
    });
}

#[test]
fn many_requests_share_one_handshake() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        for _ in 0..20 {
            assert_eq!(
                http1(pair.web.outbound, get("orders", "/")).await.status,
                200
            );
        }
        assert_eq!(
            pair.orders
                .metrics
                .handshakes
                .value(Direction::Inbound, Handshake::Done),
            1
        );
        assert_eq!(program.requests.get(), 20);
    });
}

#[test]
fn bodies_pass_over_http1_and_http2() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        let answer = http1(
            pair.web.outbound,
            post("orders.shop", "/one", "text/plain", "hello"),
        )
        .await;
        assert_eq!(answer.body, "POST /one orders.shop hello");
        let to = "http://orders.shop.svc.cluster.local/two";
        let body = RequestBody::Whole(Some("again".into()));
        let answer = h2c(pair.web.outbound, Request::post(to).body(body).unwrap()).await;
        assert_eq!(answer.body, "POST /two orders.shop.svc.cluster.local again");
        assert_eq!(program.last_request().version, http::Version::HTTP_2);
        let line = pair.orders.log.for_path("/two").await;
        assert_eq!(
            (line["bytes_in"].as_u64(), line["protocol"].as_str()),
            (Some(5), Some("h2"))
        );
    });
}

/// Sends each reserved header with the value `forged`, some at a time, since the number of fields is limited.
async fn none_arrives(program: &Program, send: impl AsyncFn(http::HeaderMap)) {
    for names in spellings_of_removed_headers().chunks(50) {
        let forged = HeaderValue::from_static("forged");
        let headers = names.iter().map(|name| (named(name), forged.clone()));
        send(headers.collect()).await;
        let seen = program.last_request();
        assert_none_is(&seen.headers, "forged");
        assert_eq!(seen.headers["merlon-caller"], spiffe("shop/web"));
        assert!(!seen.headers.contains_key("merlon-user"));
        assert!(!seen.headers.contains_key("merlon-peer"));
    }
}

#[test]
fn reserved_headers_that_a_program_sets_are_removed() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        none_arrives(&program, async |headers| {
            let mut request = get("orders.shop", "/");
            request.headers_mut().extend(headers);
            assert_eq!(http1(pair.web.outbound, request).await.status, 200);
        })
        .await;
        assert!(program.requests.get() > 1);
    });
}

#[test]
fn reserved_headers_that_a_peer_without_a_proxy_sets_are_removed() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        let web = pair.ca.identity("shop/web");
        none_arrives(&program, async |headers| {
            let mut request = Request::get("http://orders.shop/")
                .body(RequestBody::Empty)
                .unwrap();
            request.headers_mut().extend(headers);
            let claim = HeaderValue::from_static("service=shop/orders;port=80;proto=http/1.1");
            request.headers_mut().insert("merlon-peer", claim);
            let answer = send_as_peer(&web, &pair.orders, "shop/orders", request).await;
            assert_eq!(answer.status, 200, "{}", answer.body);
        })
        .await;
        assert!(program.requests.get() > 1);
    });
}

fn named(name: &str) -> http::HeaderName {
    name.parse().unwrap()
}

#[track_caller]
fn assert_none_is(headers: &http::HeaderMap, value: &str) {
    let forged = headers.iter().filter(|(_, found)| *found == value);
    let forged: Vec<_> = forged.map(|(name, _)| name).collect();
    assert!(forged.is_empty(), "{forged:?}");
}

#[test]
fn a_trace_context_is_passed_on_and_its_id_is_logged() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        let given = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let mut request = get("orders", "/traced");
        request
            .headers_mut()
            .insert("traceparent", HeaderValue::from_static(given));
        request
            .headers_mut()
            .insert("tracestate", HeaderValue::from_static("vendor=1"));
        http1(pair.web.outbound, request).await;
        assert_eq!(program.last_request().headers["traceparent"], given);
        assert_eq!(program.last_request().headers["tracestate"], "vendor=1");
        let line = pair.orders.log.for_path("/traced").await;
        assert_eq!(line["trace_id"], "0af7651916cd43dd8448eb211c80319c");
    });
}

#[test]
fn an_endpoint_with_another_identity_is_refused() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        // The address is correct, the expected identity is not.
        let mut state = pair.web_state.clone();
        let endpoint = &pair.web_state.destinations[0].endpoints[0];
        state.destinations[0].endpoints = vec![Endpoint {
            identity: Some(spiffe("shop/impostor").parse().unwrap()),
            ..endpoint.clone()
        }];
        pair.web.apply(&state);
        let answer = http1(pair.web.outbound, get("orders", "/")).await;
        answer.assert_refused(503, "upstream.identity");
        program.assert_not_reached();
    });
}

#[test]
fn a_meshed_destination_is_never_called_in_plain_text() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        pair.web.shared.identity.publish(None);
        let answer = http1(pair.web.outbound, get("orders", "/")).await;
        answer.assert_refused(503, "config.unavailable");
        // Nor by its address.
        pair.web
            .shared
            .identity
            .publish(Some(pair.ca.identity("shop/web")));
        let answer = http1(
            pair.web.outbound,
            get(&pair.orders.inbound.to_string(), "/"),
        )
        .await;
        answer.assert_refused(403, "egress.denied");
        program.assert_not_reached();
    });
}

#[test]
fn another_endpoint_is_tried_if_nothing_was_sent() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        let unserved = ports::refusing();
        let mut state = pair.web_state.clone();
        let good = state.destinations[0].endpoints[0].clone();
        state.destinations[0].endpoints = vec![
            Endpoint {
                address: unserved.address(),
                ..good.clone()
            },
            good,
        ];
        pair.web.apply(&state);
        for _ in 0..8 {
            assert_eq!(
                http1(pair.web.outbound, get("orders", "/")).await.status,
                200
            );
        }
        assert_eq!(program.requests.get(), 8);
    });
}

/// A proxy of `shop/orders` whose program has stopped: nothing listens at `program`.
fn proxy_of_a_stopped_program(pair: &Pair, program: &Refusing) -> Node {
    let state = State::new("shop/orders").with_service(service(
        "shop/orders",
        80,
        program.address().port(),
        "http",
        PERMIT_ALL,
    ));
    Node::start(Some(pair.ca.identity("shop/orders")), &state)
}

/// `shop/web` with `shop/orders` at these addresses.
fn endpoints(pair: &Pair, addresses: &[std::net::SocketAddr]) -> State {
    let mut state = pair.web_state.clone();
    let good = state.destinations[0].endpoints[0].clone();
    let at = |address: &std::net::SocketAddr| Endpoint {
        address: *address,
        ..good.clone()
    };
    state.destinations[0].endpoints = addresses.iter().map(at).collect();
    state
}

#[test]
fn a_request_that_a_stopped_program_did_not_receive_is_retried_whatever_its_method() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        let unserved = ports::refusing();
        let stopped = proxy_of_a_stopped_program(&pair, &unserved);
        pair.web
            .apply(&endpoints(&pair, &[stopped.inbound, pair.orders.inbound]));
        for round in 0..24 {
            let mut request = get("orders", "/");
            *request.method_mut() = match round % 2 {
                0 => http::Method::GET,
                _ => http::Method::DELETE,
            };
            let answer = http1(pair.web.outbound, request).await;
            assert_eq!(answer.status, 200, "{}", answer.body);
        }
        assert_eq!(program.requests.get(), 24);
        stopped.log.for_path("/").await;
        assert_eq!(
            stopped.log.lines().len(),
            1,
            "later requests avoid the endpoint"
        );
    });
}

#[test]
fn a_request_that_no_endpoint_serves_is_refused_with_or_without_a_body() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        let unserved = ports::refusing();
        let (one, other) = (
            proxy_of_a_stopped_program(&pair, &unserved),
            proxy_of_a_stopped_program(&pair, &unserved),
        );
        pair.web
            .apply(&endpoints(&pair, &[one.inbound, other.inbound]));
        let with_body = post("orders", "/", "text/plain", "hello");
        for request in [with_body, get("orders", "/")] {
            let answer = http1(pair.web.outbound, request).await;
            answer.assert_refused(503, "upstream.connect");
            assert!(!answer.headers.contains_key("merlon-unserved"));
        }
        one.log.for_path("/").await;
        other.log.for_path("/").await;
        program.assert_not_reached();
    });
}

#[test]
fn a_programs_own_merlon_unserved_header_is_ignored() {
    run(async {
        let program = Program::serving(async |_| {
            let mut answer = http::Response::new(full("done"));
            let yes = HeaderValue::from_static("yes");
            answer.headers_mut().insert("merlon-unserved", yes);
            answer
        })
        .await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        let inbound = pair.orders.inbound;
        let unserved = ports::refusing();
        pair.web
            .apply(&endpoints(&pair, &[inbound, unserved.address()]));
        let answer = http1(pair.web.outbound, get("orders", "/")).await;
        assert_eq!(answer.status, 200);
        assert!(!answer.headers.contains_key("merlon-unserved"));
        assert_eq!(program.requests.get(), 1);
    });
}

#[test]
fn a_new_certificate_opens_a_new_connection_and_the_old_one_finishes_its_streams() {
    run(async {
        let (release, held) = tokio::sync::watch::channel(false);
        let program = Program::serving(async move |request| {
            let mut held = held.clone();
            if request.uri().path() == "/slow" {
                held.wait_for(|go| *go).await.unwrap();
            }
            http::Response::new(full("done"))
        })
        .await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        let handshakes = || {
            pair.orders
                .metrics
                .handshakes
                .value(Direction::Inbound, Handshake::Done)
        };
        let slow = http1(pair.web.outbound, get("orders", "/slow"));
        let others = async {
            while program.requests.get() == 0 {
                tokio::task::yield_now().await;
            }
            for round in 1..=5 {
                pair.web
                    .shared
                    .identity
                    .publish(Some(pair.ca.identity("shop/web")));
                pair.orders
                    .shared
                    .identity
                    .publish(Some(pair.ca.identity("shop/orders")));
                assert_eq!(
                    http1(pair.web.outbound, get("orders", "/")).await.status,
                    200
                );
                assert_eq!(handshakes(), 1 + round);
            }
            release.send(true).unwrap();
        };
        let (slow, ()) = tokio::join!(slow, others);
        assert_eq!((slow.status, slow.body.as_str()), (200, "done"));
    });
}

#[test]
fn a_second_connection_opens_when_the_first_has_no_free_stream() {
    run(async {
        let (release, held) = tokio::sync::watch::channel(false);
        let program = Program::serving(async move |_| {
            held.clone().wait_for(|go| *go).await.unwrap();
            http::Response::new(full("done"))
        })
        .await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        let mut calls = Vec::new();
        for _ in 0..130 {
            calls.push(tokio::task::spawn_local(http1(
                pair.web.outbound,
                get("orders", "/"),
            )));
        }
        while program.requests.get() < 130 {
            tokio::task::yield_now().await;
        }
        release.send(true).unwrap();
        for call in calls {
            assert_eq!(call.await.unwrap().status, 200);
        }
        assert_eq!(
            pair.orders
                .metrics
                .handshakes
                .value(Direction::Inbound, Handshake::Done),
            2
        );
    });
}

#[test]
fn the_inbound_listener_answers_only_tls() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        let plain = b"GET / HTTP/1.1\r\nHost: orders\r\n\r\n";
        let answer = raw(pair.orders.inbound, plain).await;
        assert!(!answer.contains("HTTP"), "{answer:?}");
        program.assert_not_reached();
        let refused = pair
            .orders
            .metrics
            .handshakes
            .value(Direction::Inbound, Handshake::Refused);
        assert_eq!(refused, 1);
    });
}

#[test]
fn without_a_certificate_nothing_is_accepted() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        pair.orders.shared.identity.publish(None);
        let stream = TcpStream::connect(pair.orders.inbound).await.unwrap();
        assert_eq!(until_closed(stream).await, "", "not even a TLS alert");
        let answer = http1(pair.web.outbound, get("orders", "/before")).await;
        assert_eq!(answer.status, 503, "{}", answer.body);
        program.assert_not_reached();
        assert!(pair.orders.log.lines().is_empty(), "there was no request");

        let identity = pair.ca.identity("shop/orders");
        pair.orders.shared.identity.publish(Some(identity));
        let answer = http1(pair.web.outbound, get("orders", "/after")).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
    });
}

#[test]
fn the_inbound_listener_refuses_a_certificate_of_another_root() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        let handshakes = |result| {
            pair.orders
                .metrics
                .handshakes
                .value(Direction::Inbound, result)
        };
        let request = || {
            Request::get("http://orders.shop/")
                .header("merlon-peer", "service=shop/orders;port=80;proto=http/1.1")
                .body(RequestBody::Empty)
                .unwrap()
        };
        // They trust the listener, and only their own certificates are of another root: the refusal is the listener's.
        let (orders, alpn) = (spiffe("shop/orders").parse().unwrap(), MERLON_H2);
        let (limits, metrics) = (Limits::default(), WorkerMetrics::default());
        let refusals = [
            // A signature of another key than that of the root of this name.
            ("root", AlertDescription::DecryptError),
            ("another root", AlertDescription::UnknownCA),
        ];
        for (count, (root, alert)) in (1..).zip(refusals) {
            let foreign = Ca::named(root).identity_trusting("shop/web", &pair.ca);
            let to = pair.orders.inbound;
            let dialled = dial::mesh(to, &orders, &foreign, alpn, &limits, &metrics).await;
            // In TLS 1.3 the client's side of the handshake is complete before the server reads its certificate.
            let error = dialled.unwrap().read(&mut [0; 1]).await.unwrap_err();
            let error = error.into_inner().unwrap().downcast::<rustls::Error>();
            assert_eq!(*error.unwrap(), rustls::Error::AlertReceived(alert));
            until("the count", || handshakes(Handshake::Refused) == count).await;
        }
        assert_eq!(handshakes(Handshake::Done), 0);
        program.assert_not_reached();
        assert!(pair.orders.log.lines().is_empty(), "there was no request");

        // The same peer with a certificate of the right root.
        let own = pair.ca.identity_trusting("shop/web", &pair.ca);
        let answer = send_as_peer(&own, &pair.orders, "shop/orders", request()).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_eq!(handshakes(Handshake::Done), 1);
    });
}
