//! What is refused, by whom and how; and that the program saw nothing of it.

use http::{HeaderValue, Request};
use serde_json::json;

use crate::{tests::harness::*, upstream::body::RequestBody};

const READ_ONLY: &str = r#"
    @id("read") permit (principal, action in Action::"read", resource);
    @id("no-secrets") @reason("secrets stay here")
    forbid (principal, action, resource) when { context has path && context.path like "/secret*" };
"#;

#[test]
fn what_no_policy_permits_is_denied() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::new(&program, "http", "");
        let answer = http1(pair.web.outbound, get("orders", "/denied")).await;
        answer.refused(403, "authz.denied");
        program.saw_nothing();
        let line = pair.orders.log.of("/denied").await;
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
            .expect("the facts are kept");
        assert_eq!(recorded.outcome.status, 403);
    });
}

#[test]
fn a_meshed_caller_is_told_which_policy_forbade_it_and_why() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::new(&program, "http", READ_ONLY);
        let answer = http1(pair.web.outbound, get("orders", "/secret/1")).await;
        answer.refused(403, "authz.denied");
        assert_eq!(answer.problem()["policy"], "shop/orders#no-secrets");
        assert_eq!(answer.problem()["detail"], "secrets stay here");
        http1(pair.web.outbound, post("orders", "/", "text/plain", "x"))
            .await
            .refused(403, "authz.denied");
        program.saw_nothing();
        assert_eq!(
            http1(pair.web.outbound, get("orders", "/open"))
                .await
                .status,
            200
        );
    });
}

#[test]
fn the_path_that_is_decided_is_the_path_that_arrives() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::new(&program, "http", READ_ONLY);
        for path in [
            "/open/../secret",
            "/%73ecret",
            "//secret",
            "/./secret",
            "/open/%2e%2e/secret",
        ] {
            let answer = http1(pair.web.outbound, get("orders", path)).await;
            assert!(
                matches!(answer.status, 400 | 403),
                "{path}: {}",
                answer.status
            );
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
        program.saw_nothing();
        let answer = http1(pair.web.outbound, get("orders", "/a/./b/../%63?x=%2F")).await;
        assert_eq!(answer.body, "GET /a/c?x=%2F orders ");
    });
}

#[test]
fn grpc_is_refused_in_its_own_words() {
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
        program.saw_nothing();
        assert_eq!(
            pair.orders.log.of("/ledger.v1.Ledger/Post").await["status"],
            403
        );
    });
}

#[test]
fn a_content_type_does_not_choose_the_action_on_a_port_of_http() {
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
        program.saw_nothing();
    });
}

#[test]
fn a_claim_is_believed_only_about_the_own_services() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::new(&program, "http", ALL);
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
            let answer = ask_as_peer(&web, &pair.orders, "shop/orders", request).await;
            if claim != Some("service=shop/orders;port=80;proto=tcp") {
                answer.refused(404, "http.no_route");
            }
        }
        assert!(program.requests.get() <= 1);
    });
}

#[test]
fn a_peer_over_http2_cannot_send_what_http1_may_not() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::new(&program, "http", ALL);
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
            ask_as_peer(&web, &pair.orders, "shop/orders", request)
                .await
                .refused(status, reason);
        }
        // What is larger than the list that we announced is refused by the stream or by us, and never passed on.
        let mut sender = as_peer(&web, pair.orders.inbound, "shop/orders").await;
        let large = sender.send_request(with(&[("x-large", &large)])).await;
        assert!(large.is_err() || large.unwrap().status() == 431);
        let mut trace = with(&[]);
        *trace.method_mut() = http::Method::TRACE;
        ask_as_peer(&web, &pair.orders, "shop/orders", trace)
            .await
            .refused(405, "http.method");
        program.saw_nothing();
    });
}

#[test]
fn every_service_on_a_port_has_its_forbids() {
    run(async {
        let program = Program::echo().await;
        let ca = Ca::new();
        let forbid = r#"@id("never") forbid (principal, action, resource) when { context has path && context.path == "/shared" };"#;
        let state = State::of("shop/orders")
            .serving(service("shop/orders", 80, program.port(), "http", ALL))
            .serving(service(
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
            &State::of("shop/web").calling(to),
        );
        let answer = http1(web.outbound, get("orders", "/shared")).await;
        answer.refused(403, "authz.denied");
        assert_eq!(answer.problem()["policy"], "shop/orders-canary#never");
        program.saw_nothing();
        assert_eq!(http1(web.outbound, get("orders", "/own")).await.status, 200);
    });
}

fn with_validation(port: u16) -> serde_json::Value {
    let mut service = service("shop/orders", 80, port, "http", ALL);
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
fn a_request_must_have_the_form_that_its_route_asks_for() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::with(with_validation(program.port()), "http");
        let to = pair.web.outbound;
        http1(to, get("orders", "/nowhere"))
            .await
            .refused(404, "validate.route");
        let answer = http1(to, get("orders", "/orders")).await;
        answer.refused(405, "http.method");
        assert_eq!(answer.headers["allow"], "POST");
        http1(to, post("orders", "/orders", "text/plain", "{}"))
            .await
            .refused(415, "http.media_type");
        let answer = http1(
            to,
            post("orders", "/orders", "application/json", r#"{"sku": 7}"#),
        )
        .await;
        answer.refused(400, "validate.body");
        assert_eq!(answer.problem()["place"], "/sku");
        for body in [r#"{"sku": "a", "sku": "b"}"#, r#"{"sku": "a"} x"#, "", "{"] {
            http1(to, post("orders", "/orders", "application/json", body))
                .await
                .refused(400, "validate.body");
        }
        program.saw_nothing();
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
fn a_body_over_its_limit_never_arrives_whole() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::with(with_validation(program.port()), "http");
        let long: &'static str = Box::leak("x".repeat(70_000).into_boxed_str());
        // With a length it is refused at once.
        let request = Request::put("/orders/1").header("host", "orders");
        let body = RequestBody::Whole(Some(long.into()));
        http1(pair.web.outbound, request.body(body).unwrap())
            .await
            .refused(413, "http.limit");
        program.saw_nothing();
        // Without one, when it grows past it.
        let mut bytes = b"PUT /orders/1 HTTP/1.1\r\nHost: orders\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        bytes.extend_from_slice(format!("{:x}\r\n{long}\r\n0\r\n\r\n", long.len()).as_bytes());
        let answer = raw(pair.web.outbound, &bytes).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    });
}

#[test]
fn a_cold_proxy_refuses_everything() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::new(&program, "http", ALL);
        pair.orders.shared.snapshot.publish(None);
        http1(pair.web.outbound, get("orders", "/"))
            .await
            .refused(503, "config.unavailable");
        pair.web.shared.snapshot.publish(None);
        let answer = http1(pair.web.outbound, get("orders", "/")).await;
        answer.refused(503, "config.unavailable");
        assert!(answer.headers.contains_key("retry-after"));
        program.saw_nothing();
    });
}

#[test]
fn a_program_that_is_away_is_told_apart_from_one_that_breaks_off() {
    run(async {
        let program = Program::raw(async |stream| drop(stream)).await;
        let pair = Pair::new(&program, "http", ALL);
        http1(pair.web.outbound, get("orders", "/"))
            .await
            .refused(502, "upstream.reset");
        let garbage = Program::raw(async |mut stream: tokio::net::TcpStream| {
            use tokio::io::AsyncWriteExt as _;
            let _ = stream.write_all(b"SSH-2.0-nonsense\r\n\r\n").await;
        })
        .await;
        let pair = Pair::new(&garbage, "http", ALL);
        http1(pair.web.outbound, get("orders", "/"))
            .await
            .refused(502, "upstream.protocol");
        let nobody = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let pair = Pair::with(service("shop/orders", 80, nobody, "http", ALL), "http");
        http1(pair.web.outbound, get("orders", "/"))
            .await
            .refused(503, "upstream.connect");
    });
}

fn with_tokens(port: u16, required: bool) -> serde_json::Value {
    let mut service = service("shop/orders", 80, port, "http", ALL);
    service["authentication"] = json!([{ "from": "shop/tokens", "spec": {
        "required": required,
        "issuers": [{ "name": "customers", "issuer": "http://127.0.0.1:1", "audiences": ["shop"] }] } }]);
    service
}

#[test]
fn a_token_that_is_required_must_be_there_and_be_one() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::with(with_tokens(program.port(), true), "http");
        let answer = http1(pair.web.outbound, get("orders", "/missing")).await;
        answer.refused(401, "authn.missing");
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
            .refused(401, "authn.missing");
        let answer = http1(pair.web.outbound, with("Bearer a b")).await;
        answer.refused(401, "authn.malformed");
        assert_eq!(
            answer.headers["www-authenticate"],
            "Bearer error=\"invalid_request\""
        );
        let answer = http1(pair.web.outbound, with("Bearer not-a-token")).await;
        answer.refused(401, "authn.invalid_token");
        assert_eq!(
            answer.headers["www-authenticate"],
            "Bearer error=\"invalid_token\""
        );
        http1(pair.web.outbound, get("orders", "/?access_token=x"))
            .await
            .refused(400, "authn.malformed");
        program.saw_nothing();
        let line = pair.orders.log.of("/missing").await;
        assert_eq!(
            (line["status"].as_u64(), line["policy"].as_str()),
            (Some(401), None)
        );
    });
}

#[test]
fn a_token_that_nobody_asks_for_stays_and_one_that_is_optional_goes() {
    run(async {
        let program = Program::echo().await;
        let with = || {
            let mut request = get("orders", "/");
            request
                .headers_mut()
                .insert("authorization", HeaderValue::from_static("Basic dTpw"));
            request
        };
        let pair = Pair::new(&program, "http", ALL);
        http1(pair.web.outbound, with()).await;
        assert_eq!(program.last().headers["authorization"], "Basic dTpw");
        let pair = Pair::with(with_tokens(program.port(), false), "http");
        assert_eq!(http1(pair.web.outbound, with()).await.status, 200);
        assert!(!program.last().headers.contains_key("authorization"));
    });
}

#[test]
fn who_spent_a_limit_is_told_when_to_come_again_and_before_any_token_is_read() {
    run(async {
        let program = Program::echo().await;
        let mut service = with_tokens(program.port(), true);
        service["limits"] = json!([{ "from": "shop/limits", "spec": {
            "name": "per-address", "per": "address", "rate": { "requests": 2, "per": "1h" } } }]);
        let pair = Pair::with(service, "http");
        for _ in 0..2 {
            http1(pair.web.outbound, get("orders", "/"))
                .await
                .refused(401, "authn.missing");
        }
        let answer = http1(pair.web.outbound, get("orders", "/spent")).await;
        answer.refused(429, "rate.limited");
        assert!(
            answer.headers["retry-after"]
                .to_str()
                .unwrap()
                .parse::<u64>()
                .unwrap()
                > 60
        );
        assert!(answer.body.contains("per-address"));
        program.saw_nothing();
        assert_eq!(pair.orders.log.of("/spent").await["reason"], "rate.limited");
    });
}

#[test]
fn a_claim_that_comes_twice_is_refused_also_when_both_are_the_same() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::new(&program, "http", ALL);
        let web = pair.ca.identity("shop/web");
        let claim = "service=shop/orders;port=80;proto=http/1.1";
        for second in [claim, "service=shop/other;port=80;proto=http/1.1"] {
            let request = Request::get("http://orders.shop/")
                .header("merlon-peer", claim)
                .header("merlon-peer", second)
                .body(RequestBody::Empty)
                .unwrap();
            ask_as_peer(&web, &pair.orders, "shop/orders", request)
                .await
                .refused(400, "http.header");
        }
        program.saw_nothing();
    });
}

#[test]
fn policies_read_the_tls_of_a_peer_and_the_hosts_that_its_certificate_names() {
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
        ask_as_peer(&plain, &pair.orders, "shop/orders", ask())
            .await
            .refused(403, "authz.denied");
        program.saw_nothing();
        let named = pair.ca.identity_with("shop/web", &["web.example"]);
        let answer = ask_as_peer(&named, &pair.orders, "shop/orders", ask()).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
    });
}
