//! Outbound requests: names in the mesh, unknown names and external hosts.

use http::{Method, Request};
use merlon_config::resource::OutboundMode;

use crate::{telemetry::metrics::FetchResult, tests::harness::*, upstream::body::RequestBody};

#[test]
fn an_unknown_mesh_name_is_404() {
    run(async {
        let web = Node::start(
            Some(Ca::new().identity("shop/web")),
            &State::new("shop/web"),
        );
        for host in [
            "nothing",
            "nothing.shop.svc",
            "nothing.shop.svc.cluster.local",
        ] {
            http1(web.outbound, get(host, "/"))
                .await
                .assert_refused(404, "http.no_route");
        }
    });
}

#[test]
fn a_port_that_a_service_does_not_have_is_404() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        http1(pair.web.outbound, get("orders:8080", "/"))
            .await
            .assert_refused(404, "http.no_route");
        assert_eq!(
            http1(pair.web.outbound, get("orders:80", "/")).await.status,
            200
        );
    });
}

#[test]
fn an_external_request_is_forwarded_unchanged_or_denied_by_mode() {
    run(async {
        let outside = Program::echo().await;
        let mut state = State::new("shop/web");
        let web = Node::start(Some(Ca::new().identity("shop/web")), &state);
        let host = outside.address.to_string();
        let answer = http1(web.outbound, get(&host, "/observed")).await;
        assert_eq!(
            (answer.status, answer.body),
            (200, format!("GET /observed {host} "))
        );
        assert!(!outside.last_request().headers.contains_key("merlon-peer"));
        assert_eq!(web.log.for_path("/observed").await["dst"], host);
        state.mode = OutboundMode::Deny;
        web.apply(&state);
        http1(web.outbound, get(&host, "/"))
            .await
            .assert_refused(403, "egress.denied");
        assert_eq!(outside.requests.get(), 1);
    });
}

#[test]
fn a_proxy_never_calls_itself() {
    run(async {
        let web = Node::start(
            Some(Ca::new().identity("shop/web")),
            &State::new("shop/web"),
        );
        let (outbound, inbound) = (web.outbound.port(), web.inbound.port());
        for (host, port) in [
            ("127.0.0.1", outbound),
            ("127.0.0.1", inbound),
            ("0.0.0.0", outbound),
            ("[::ffff:127.0.0.1]", outbound),
        ] {
            let own = format!("{host}:{port}");
            http1(web.outbound, get(&own, "/"))
                .await
                .assert_refused(508, "upstream.loop");
        }
        // No connection to itself was opened, so only those of this test are counted.
        let counted = &web.metrics.upstream_connections;
        assert_eq!(counted.value(FetchResult::Ok), 0);
    });
}

#[test]
fn a_program_that_is_the_proxy_itself_is_not_called() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        let itself = pair.orders.outbound.port();
        let service = service("shop/orders", 80, itself, "http", PERMIT_ALL);
        pair.orders
            .apply(&State::new("shop/orders").with_service(service));
        http1(pair.web.outbound, get("orders", "/"))
            .await
            .assert_refused(508, "upstream.loop");
        program.assert_not_reached();
    });
}

#[test]
fn a_request_is_refused_after_32_proxies() {
    run(async {
        let outside = Program::echo().await;
        let state = State::new("shop/web");
        let web = Node::start(Some(Ca::new().identity("shop/web")), &state);
        let host = outside.address.to_string();
        for (sent, passed_on) in [
            (None, "1"),
            (Some("1"), "2"),
            (Some("31"), "32"),
            (Some("x"), "1"),
        ] {
            let mut request = get(&host, "/");
            if let Some(sent) = sent {
                request
                    .headers_mut()
                    .insert("merlon-hops", sent.parse().unwrap());
            }
            assert_eq!(http1(web.outbound, request).await.status, 200);
            assert_eq!(outside.last_request().headers["merlon-hops"], passed_on);
        }
        for sent in ["32", "255"] {
            let mut request = get(&host, "/circle");
            request
                .headers_mut()
                .insert("merlon-hops", sent.parse().unwrap());
            http1(web.outbound, request)
                .await
                .assert_refused(508, "http.loop");
        }
        assert_eq!(outside.requests.get(), 4);
    });
}

#[test]
fn absolute_form_is_equivalent_to_host_and_must_match_it() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        let ask = |bytes: &str| raw(pair.web.outbound, bytes.as_bytes().to_vec().leak());
        let answer = ask(
            "GET http://orders.shop/a HTTP/1.1\r\nHost: orders.shop\r\nConnection: close\r\n\r\n",
        )
        .await;
        assert!(answer.ends_with("GET /a orders.shop "), "{answer}");
        let answer =
            ask("GET http://orders.shop/a HTTP/1.1\r\nHost: other\r\nConnection: close\r\n\r\n")
                .await;
        assert!(
            answer.starts_with("HTTP/1.1 400 ") && answer.contains("http.authority"),
            "{answer}"
        );
        let answer = ask("GET http://u:p@orders.shop/a HTTP/1.1\r\nHost: u:p@orders.shop\r\nConnection: close\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        assert_eq!(program.requests.get(), 1);
    });
}

#[test]
fn connect_and_trace_are_405() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        let mut request = get("orders", "/");
        *request.method_mut() = Method::TRACE;
        let answer = http1(pair.web.outbound, request).await;
        answer.assert_refused(405, "http.method");
        assert!(answer.headers.contains_key("allow"));
        let bytes = b"CONNECT orders:80 HTTP/1.1\r\nHost: orders:80\r\nConnection: close\r\n\r\n";
        let answer = raw(pair.web.outbound, bytes).await;
        assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
        let request = Request::connect("orders:80")
            .body(RequestBody::Empty)
            .unwrap();
        assert_eq!(h2c(pair.web.outbound, request).await.status, 405);
        program.assert_not_reached();
    });
}

#[test]
fn without_identities_a_plain_endpoint_is_called_in_plain_text() {
    run(async {
        let program = Program::echo().await;
        let to = destination("shop/orders", 80, "http", program.address, None);
        let web = Node::start(None, &State::new("shop/web").with_destination(to));
        let answer = http1(web.outbound, get("orders", "/plain")).await;
        assert_eq!(answer.body, "GET /plain orders ");
        let request = Request::get("http://orders/two")
            .body(RequestBody::Empty)
            .unwrap();
        assert_eq!(h2c(web.outbound, request).await.body, "GET /two orders ");
    });
}

#[test]
fn without_identities_the_inbound_listener_accepts_plain_text_from_any_client() {
    run(async {
        let program = Program::echo().await;
        let policies = r#"@id("read") permit (principal, action in Action::"read", resource);"#;
        let state = State::new("shop/orders").with_service(service(
            "shop/orders",
            80,
            program.port(),
            "http",
            policies,
        ));
        let orders = Node::start(None, &state);
        let answer = http1(orders.inbound, get("whatever", "/a")).await;
        assert_eq!(answer.body, "GET /a whatever ");
        assert!(!program.last_request().headers.contains_key("merlon-caller"));
        let answer = http1(orders.inbound, post("whatever", "/a", "text/plain", "x")).await;
        answer.assert_refused(403, "authz.denied");
        assert!(
            answer.problem().get("policy").is_none(),
            "an unauthenticated client does not learn the policy"
        );
        assert_eq!(program.requests.get(), 1);
    });
}
