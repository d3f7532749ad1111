//! Refused requests: status, reason and log line, and that they do not reach the program.

use http::{HeaderValue, Request};
use merlon_test_support::ports;
use serde_json::json;

use crate::{tests::harness::*, upstream::body::RequestBody};

const READ_ONLY: &str = r#"
    @id("read") permit (principal, action in Action::"read", resource);
    @id("no-secrets") @reason("secrets stay here")
    forbid (principal, action, resource) when { context has path && context.path like "/secret*" };
"#;

#[test]
fn a_request_that_no_policy_permits_is_denied() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::new(&program, "http", "");
        let answer = http1(pair.web.outbound, get("orders", "/denied")).await;
        answer.assert_refused(403, "authz.denied");
        program.assert_not_reached();
        let line = pair.orders.log.for_path("/denied").await;
        assert_eq!(
            (line["status"].as_u64(), line["reason"].as_str()),
            (Some(403), Some("authz.denied"))
        );
        assert_eq!(line["src"], spiffe("shop/web"));
        let id = answer.headers["merlon-decision-id"]
            .to_str()
            .unwrap()
            .parse()
            .unwrap();
        assert_eq!(
            line["decision_id"],
            answer.headers["merlon-decision-id"].to_str().unwrap()
        );
        let recorded = pair
            .orders
            .shared
            .decisions
            .find(id)
            .expect("the decision is recorded");
        assert_eq!(recorded.outcome.status, 403);
    });
}

#[test]
fn a_meshed_caller_learns_which_policy_forbade_it_and_why() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::new(&program, "http", READ_ONLY);
        let answer = http1(pair.web.outbound, get("orders", "/secret/1")).await;
        answer.assert_refused(403, "authz.denied");
        assert_eq!(answer.problem()["policy"], "shop/orders#no-secrets");
        assert_eq!(answer.problem()["detail"], "secrets stay here");
        http1(pair.web.outbound, post("orders", "/", "text/plain", "x"))
            .await
            .assert_refused(403, "authz.denied");
        program.assert_not_reached();
        assert_eq!(
            http1(pair.web.outbound, get("orders", "/open"))
                .await
                .status,
            200
        );
    });
}

#[test]
fn the_program_receives_the_path_that_was_authorized() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::new(&program, "http", READ_ONLY);
        for (path, status, reason) in [
            ("/open/../secret", 403, "authz.denied"),
            ("/%73ecret", 403, "authz.denied"),
            ("//secret", 403, "authz.denied"),
            ("/./secret", 403, "authz.denied"),
            ("/open/%2e%2e/secret", 403, "authz.denied"),
        ] {
            let answer = http1(pair.web.outbound, get("orders", path)).await;
            answer.assert_refused(status, reason);
        }
        for path in [
            "/open%2f..%2fsecret",
            "/open/..;/secret",
            "/a\\b",
            "/%00",
            "/%zz",
            "/../x",
        ] {
            let answer = raw(
                pair.web.outbound,
                format!("GET {path} HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n")
                    .as_bytes(),
            )
            .await;
            assert!(answer.starts_with("HTTP/1.1 400 "), "{path}: {answer}");
        }
        program.assert_not_reached();
        let answer = http1(pair.web.outbound, get("orders", "/a/./b/../%63?x=%2F")).await;
        assert_eq!(answer.body, "GET /a/c?x=%2F orders ");
    });
}

#[test]
fn a_grpc_call_is_refused_with_grpc_status_and_message() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::new(&program, "grpc", "");
        let request = Request::post("http://orders.shop/ledger.v1.Ledger/Post")
            .header("content-type", "application/grpc");
        let answer = h2c(pair.web.outbound, request.body(RequestBody::Empty).unwrap()).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.headers["grpc-status"], "7");
        assert!(
            answer.headers["grpc-message"]
                .to_str()
                .unwrap()
                .starts_with("authz.denied")
        );
        assert_eq!(answer.headers["content-type"], "application/grpc");
        program.assert_not_reached();
        assert_eq!(
            pair.orders.log.for_path("/ledger.v1.Ledger/Post").await["status"],
            403
        );
    });
}

#[test]
fn the_content_type_does_not_select_the_action_on_an_http_port() {
    run(async {
        let program = Program::echo().await;
        let policies = r#"
            @id("all") @reason("a test") permit (principal, action, resource);
            @id("no-http") forbid (principal, action in Action::"http", resource);
        "#;
        let pair = Pair::new(&program, "http", policies);
        let request =
            Request::post("http://orders/a.B/C").header("content-type", "application/grpc");
        let answer = h2c(pair.web.outbound, request.body(RequestBody::Empty).unwrap()).await;
        assert_eq!(answer.headers["grpc-status"], "7");
        program.assert_not_reached();
    });
}

#[test]
fn merlon_peer_is_accepted_only_for_services_of_this_workload() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        let web = pair.ca.identity("shop/web");
        for claim in [
            None,
            Some("service=shop/other;port=80;proto=http/1.1"),
            Some("service=shop/orders;port=81;proto=http/1.1"),
            Some("service=shop/orders;port=80;proto=tcp"),
            Some("nonsense"),
            Some("service=shop/orders;port=80"),
        ] {
            let mut request = Request::get("http://orders.shop/")
                .body(RequestBody::Empty)
                .unwrap();
            if let Some(claim) = claim {
                request
                    .headers_mut()
                    .insert("merlon-peer", HeaderValue::from_static(claim));
            }
            let answer = send_as_peer(&web, &pair.orders, "shop/orders", request).await;
            answer.assert_refused(404, "http.no_route");
        }
        program.assert_not_reached();
        until("the lines", || pair.orders.log.lines().len() == 6).await;
        let lines = pair.orders.log.lines();
        let refused = |line: &serde_json::Value| line["reason"] == "http.no_route";
        assert!(lines.iter().all(refused), "{lines:#?}");
    });
}

#[test]
fn a_peer_over_http2_cannot_send_what_http1_forbids() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        let web = pair.ca.identity("shop/web");
        let claim = "service=shop/orders;port=80;proto=http/1.1";
        let with = |pairs: &[(&'static str, &str)]| {
            let mut request = Request::get("http://orders.shop/").header("merlon-peer", claim);
            for (name, value) in pairs {
                request = request.header(*name, *value);
            }
            request.body(RequestBody::Empty).unwrap()
        };
        let large = "x".repeat(70_000);
        for (request, status, reason) in [
            (with(&[("x_y", "1")]), 400, "http.header"),
            (
                with(&[("authorization", "Bearer a"), ("authorization", "Bearer b")]),
                400,
                "http.header",
            ),
            (with(&[("host", "other")]), 400, "http.authority"),
            (with(&[("expect", "200-ok")]), 417, "http.header"),
            (
                with(&(0..101).map(|_| ("x-many", "1")).collect::<Vec<_>>()),
                431,
                "http.limit",
            ),
        ] {
            send_as_peer(&web, &pair.orders, "shop/orders", request)
                .await
                .assert_refused(status, reason);
        }
        // A header list over the announced maximum is refused by the HTTP/2 library, before there is a request.
        let mut sender = connect_as_peer(&web, pair.orders.inbound, "shop/orders").await;
        let large = sender.send_request(with(&[("x-large", &large)])).await;
        assert_eq!(large.unwrap().status(), 431);
        let mut trace = with(&[]);
        *trace.method_mut() = http::Method::TRACE;
        send_as_peer(&web, &pair.orders, "shop/orders", trace)
            .await
            .assert_refused(405, "http.method");
        program.assert_not_reached();
    });
}

#[test]
fn the_forbid_policies_of_every_service_on_a_port_apply() {
    run(async {
        let program = Program::echo().await;
        let ca = Ca::new();
        let forbid = r#"@id("never") forbid (principal, action, resource) when { context has path && context.path == "/shared" };"#;
        let state = State::new("shop/orders")
            .with_service(service(
                "shop/orders",
                80,
                program.port(),
                "http",
                PERMIT_ALL,
            ))
            .with_service(service(
                "shop/orders-canary",
                80,
                program.port(),
                "http",
                forbid,
            ));
        let orders = Node::start(Some(ca.identity("shop/orders")), &state);
        let to = destination(
            "shop/orders",
            80,
            "http",
            orders.inbound,
            Some("shop/orders"),
        );
        let web = Node::start(
            Some(ca.identity("shop/web")),
            &State::new("shop/web").with_destination(to),
        );
        let answer = http1(web.outbound, get("orders", "/shared")).await;
        answer.assert_refused(403, "authz.denied");
        assert_eq!(answer.problem()["policy"], "shop/orders-canary#never");
        program.assert_not_reached();
        assert_eq!(http1(web.outbound, get("orders", "/own")).await.status, 200);
    });
}

fn with_validation(port: u16) -> serde_json::Value {
    let mut service = service("shop/orders", 80, port, "http", PERMIT_ALL);
    service["validation"] = json!([{ "from": "shop/forms", "spec": {
        "unknownRoutes": "refuse",
        "limits": { "headers": "4KiB", "uri": "1KiB", "body": "64KiB" },
        "routes": [
            { "path": "/orders", "methods": ["POST"], "contentTypes": ["application/json"], "maxBody": "1KiB",
              "body": { "type": "object", "required": ["sku"], "properties": { "sku": { "type": "string" } } } },
            { "path": "/orders/{id}", "methods": ["GET", "PUT"] },
        ] } }]);
    service
}

#[test]
fn a_request_must_match_the_schema_of_its_route() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::with(with_validation(program.port()), "http");
        let to = pair.web.outbound;
        http1(to, get("orders", "/nowhere"))
            .await
            .assert_refused(404, "validate.route");
        let answer = http1(to, get("orders", "/orders")).await;
        answer.assert_refused(405, "http.method");
        assert_eq!(answer.headers["allow"], "POST");
        http1(to, post("orders", "/orders", "text/plain", "{}"))
            .await
            .assert_refused(415, "http.media_type");
        let answer = http1(
            to,
            post("orders", "/orders", "application/json", r#"{"sku": 7}"#),
        )
        .await;
        answer.assert_refused(400, "validate.body");
        assert_eq!(answer.problem()["place"], "/sku");
        for body in [r#"{"sku": "a", "sku": "b"}"#, r#"{"sku": "a"} x"#, "", "{"] {
            http1(to, post("orders", "/orders", "application/json", body))
                .await
                .assert_refused(400, "validate.body");
        }
        program.assert_not_reached();
        let answer = http1(
            to,
            post("orders", "/orders", "application/json", r#"{"sku": "a"}"#),
        )
        .await;
        assert_eq!(answer.body, r#"POST /orders orders {"sku": "a"}"#);
        assert_eq!(
            pair.orders.log.line(|line| line["status"] == 200).await["route"],
            "/orders"
        );
    });
}

#[test]
fn a_body_over_its_limit_is_413() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::with(with_validation(program.port()), "http");
        let long: &'static str = Box::leak("x".repeat(70_000).into_boxed_str());
        // With a declared length, it is refused at once.
        let request = Request::put("/orders/1").header("host", "orders");
        let body = RequestBody::Whole(Some(long.into()));
        http1(pair.web.outbound, request.body(body).unwrap())
            .await
            .assert_refused(413, "http.limit");
        program.assert_not_reached();
        // Without one, it is refused when it exceeds the limit.
        let mut bytes = b"PUT /orders/1 HTTP/1.1\r\nHost: orders\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        bytes.extend_from_slice(format!("{:x}\r\n{long}\r\n0\r\n\r\n", long.len()).as_bytes());
        let answer = raw(pair.web.outbound, &bytes).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
        // The program may have received the beginning; it knows that the body is not complete.
        let begun = program.requests.get();
        until("the end of the body", || program.broken.get() == begun).await;
        assert_eq!(program.whole.get(), 0);
        let refused =
            |line: &serde_json::Value| line["path"] == "/orders/1" && line["status"] == 413;
        assert_eq!(pair.orders.log.line(refused).await["reason"], "http.limit");
    });
}

#[test]
fn a_proxy_without_a_snapshot_refuses_every_request() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        pair.orders.shared.snapshot.publish(None);
        http1(pair.web.outbound, get("orders", "/"))
            .await
            .assert_refused(503, "config.unavailable");
        pair.web.shared.snapshot.publish(None);
        let answer = http1(pair.web.outbound, get("orders", "/")).await;
        answer.assert_refused(503, "config.unavailable");
        assert!(answer.headers.contains_key("retry-after"));
        program.assert_not_reached();
    });
}

#[test]
fn a_reset_a_malformed_response_and_an_unreachable_program_have_distinct_reasons() {
    run(async {
        let program = Program::raw(async |stream| drop(stream)).await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        http1(pair.web.outbound, get("orders", "/"))
            .await
            .assert_refused(502, "upstream.reset");
        let garbage = Program::raw(async |mut stream: tokio::net::TcpStream| {
            use tokio::io::AsyncWriteExt as _;
            let _ = stream.write_all(b"SSH-2.0-nonsense\r\n\r\n").await;
        })
        .await;
        let pair = Pair::new(&garbage, "http", PERMIT_ALL);
        http1(pair.web.outbound, get("orders", "/"))
            .await
            .assert_refused(502, "upstream.protocol");
        let unserved = ports::refusing();
        let pair = Pair::with(
            service(
                "shop/orders",
                80,
                unserved.address().port(),
                "http",
                PERMIT_ALL,
            ),
            "http",
        );
        http1(pair.web.outbound, get("orders", "/"))
            .await
            .assert_refused(503, "upstream.connect");
    });
}

fn with_tokens(port: u16, required: bool) -> serde_json::Value {
    let mut service = service("shop/orders", 80, port, "http", PERMIT_ALL);
    service["authentication"] = json!([{ "from": "shop/tokens", "spec": {
        "required": required,
        "issuers": [{ "name": "customers", "issuer": "http://127.0.0.1:1", "audiences": ["shop"] }] } }]);
    service
}

#[test]
fn a_required_token_must_be_present_and_valid() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::with(with_tokens(program.port(), true), "http");
        let answer = http1(pair.web.outbound, get("orders", "/missing")).await;
        answer.assert_refused(401, "authn.missing");
        assert_eq!(answer.headers["www-authenticate"], "Bearer");
        let with = |value: &'static str| {
            let mut request = get("orders", "/");
            request
                .headers_mut()
                .insert("authorization", HeaderValue::from_static(value));
            request
        };
        http1(pair.web.outbound, with("Basic dTpw"))
            .await
            .assert_refused(401, "authn.missing");
        let answer = http1(pair.web.outbound, with("Bearer a b")).await;
        answer.assert_refused(401, "authn.malformed");
        assert_eq!(
            answer.headers["www-authenticate"],
            "Bearer error=\"invalid_request\""
        );
        let answer = http1(pair.web.outbound, with("Bearer not-a-token")).await;
        answer.assert_refused(401, "authn.invalid_token");
        assert_eq!(
            answer.headers["www-authenticate"],
            "Bearer error=\"invalid_token\""
        );
        http1(pair.web.outbound, get("orders", "/?access_token=x"))
            .await
            .assert_refused(400, "authn.malformed");
        program.assert_not_reached();
        let line = pair.orders.log.for_path("/missing").await;
        assert_eq!(
            (line["status"].as_u64(), line["policy"].as_str()),
            (Some(401), None)
        );
    });
}

#[test]
fn the_authorization_header_is_removed_only_where_tokens_are_configured() {
    run(async {
        let program = Program::echo().await;
        let with = || {
            let mut request = get("orders", "/");
            request
                .headers_mut()
                .insert("authorization", HeaderValue::from_static("Basic dTpw"));
            request
        };
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        http1(pair.web.outbound, with()).await;
        assert_eq!(
            program.last_request().headers["authorization"],
            "Basic dTpw"
        );
        let forwarding = |each: &[bool]| {
            let mut service = with_tokens(program.port(), false);
            let document = service["authentication"][0].clone();
            let documents = each.iter().map(|forward| {
                let mut document = document.clone();
                document["spec"]["forwardToken"] = json!(forward);
                document
            });
            service["authentication"] = documents.collect();
            service
        };
        let by_default = with_tokens(program.port(), false);
        for (service, forwarded) in [
            (by_default, false),
            (forwarding(&[true]), true),
            (forwarding(&[true, true]), true),
            (forwarding(&[true, false]), false),
            (forwarding(&[false, true]), false),
        ] {
            let shown = service["authentication"].to_string();
            let pair = Pair::with(service, "http");
            assert_eq!(http1(pair.web.outbound, with()).await.status, 200);
            let headers = program.last_request().headers;
            let expected = forwarded.then_some("Basic dTpw");
            let found = headers.get("authorization");
            assert_eq!(
                found.map(|value| value.to_str().unwrap()),
                expected,
                "{shown}"
            );
        }
    });
}

#[test]
fn an_exhausted_rate_limit_is_429_with_retry_after_before_tokens_are_checked() {
    run(async {
        let program = Program::echo().await;
        let mut service = with_tokens(program.port(), true);
        service["limits"] = json!([{ "from": "shop/limits", "spec": {
            "name": "per-address", "per": "address", "rate": { "requests": 2, "per": "1h" } } }]);
        let pair = Pair::with(service, "http");
        for _ in 0..2 {
            http1(pair.web.outbound, get("orders", "/"))
                .await
                .assert_refused(401, "authn.missing");
        }
        let answer = http1(pair.web.outbound, get("orders", "/spent")).await;
        answer.assert_refused(429, "rate.limited");
        assert!(
            answer.headers["retry-after"]
                .to_str()
                .unwrap()
                .parse::<u64>()
                .unwrap()
                > 60
        );
        assert!(answer.body.contains("per-address"));
        program.assert_not_reached();
        assert_eq!(
            pair.orders.log.for_path("/spent").await["reason"],
            "rate.limited"
        );
    });
}

#[test]
fn a_duplicate_merlon_peer_header_is_refused_even_if_both_are_equal() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        let web = pair.ca.identity("shop/web");
        let claim = "service=shop/orders;port=80;proto=http/1.1";
        for second in [claim, "service=shop/other;port=80;proto=http/1.1"] {
            let request = Request::get("http://orders.shop/")
                .header("merlon-peer", claim)
                .header("merlon-peer", second)
                .body(RequestBody::Empty)
                .unwrap();
            send_as_peer(&web, &pair.orders, "shop/orders", request)
                .await
                .assert_refused(400, "http.header");
        }
        program.assert_not_reached();
    });
}

#[test]
fn policies_can_use_the_tls_parameters_and_dns_names_of_a_peer() {
    run(async {
        let program = Program::echo().await;
        let policies = r#"@id("tls") @reason("a test") permit (principal, action == Action::"GET", resource)
            when { context has tls && context.tls.version == "TLSv1.3" && context.tls.cipher like "TLS13_*"
                && context.tls.dnsNames.contains("web.example") };"#;
        let pair = Pair::new(&program, "http", policies);
        let ask = || {
            Request::get("http://orders.shop/")
                .header("merlon-peer", "service=shop/orders;port=80;proto=http/1.1")
                .body(RequestBody::Empty)
                .unwrap()
        };
        let plain = pair.ca.identity("shop/web");
        send_as_peer(&plain, &pair.orders, "shop/orders", ask())
            .await
            .assert_refused(403, "authz.denied");
        program.assert_not_reached();
        let named = pair.ca.identity_with("shop/web", &["web.example"]);
        let answer = send_as_peer(&named, &pair.orders, "shop/orders", ask()).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
    });
}
