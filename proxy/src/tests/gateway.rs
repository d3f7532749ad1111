//! The gateway: from an external client to a program behind a sidecar.

use std::sync::Arc;

use http::{HeaderValue, Request};
use merlon_certs::MERLON_TCP;
use merlon_test_support::ports;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{tests::harness::*, upstream::body::RequestBody};

fn routes() -> serde_json::Value {
    json!([{ "name": "shop/orders", "spec": {
        "parentRefs": [{ "name": "main", "namespace": "edge" }],
        "hostnames": ["shop.example"],
        "rules": [
            { "matches": [{ "path": { "value": "/orders" } }], "backendRefs": [{ "name": "orders", "port": 80 }] },
            { "matches": [{ "path": { "value": "/empty" } }], "backendRefs": [] },
            { "matches": [{ "path": { "value": "/gone" } }], "backendRefs": [{ "name": "gone", "port": 80 }] },
        ] } }])
}

/// A gateway with one listener, in front of `shop/orders`.
async fn edge(pair: &Pair, listener: serde_json::Value, policies: &str) -> Node {
    let state = edge_state(pair, &listener, policies);
    Node::start(Some(pair.ca.identity("edge/main")), &state)
}

fn edge_state(pair: &Pair, listener: &serde_json::Value, policies: &str) -> State {
    let mut state = State::new("edge/main");
    state.services.push(
        json!({ "name": "edge/main", "policies": [{ "name": "edge/main", "text": policies }] }),
    );
    state.gateway =
        Some(json!({ "name": "edge/main", "listeners": [listener], "routes": routes() }));
    state.destinations = pair.web_state.destinations.clone();
    state
}

/// As [`edge`], without TLS and open to everyone. Also returns its state, for tests that change it.
pub(super) async fn plain_edge(pair: &Pair) -> (Node, State, std::net::SocketAddr) {
    let port = ports::free();
    let listener = json!({ "name": "http", "port": port.port(), "protocol": "HTTP" });
    let state = edge_state(pair, &listener, PERMIT_ALL);
    let edge = Node::start(Some(pair.ca.identity("edge/main")), &state);
    (edge, state, connected(port).await)
}

async fn connected(address: std::net::SocketAddr) -> std::net::SocketAddr {
    while TcpStream::connect(address).await.is_err() {
        tokio::task::yield_now().await;
    }
    address
}

#[test]
fn an_external_request_passes_the_gateway_and_the_sidecar_with_headers_set_by_the_gateway() {
    run(async {
        let program = Program::echo().await;
        let policies =
            r#"@id("edge") permit (principal == Workload::"edge/main", action, resource);"#;
        let pair = Pair::new(&program, "http", policies);
        let port = ports::free();
        let edge = edge(
            &pair,
            json!({ "name": "http", "port": port.port(), "protocol": "HTTP" }),
            PERMIT_ALL,
        )
        .await;
        let address = connected(port).await;
        let mut request = get("shop.example", "/orders/7");
        for name in [
            "x-forwarded-for",
            "x-forwarded-proto",
            "merlon-caller",
            "merlon-user",
            "merlon-peer",
            "x-real-ip",
            "merlon.caller",
            "merlon~user",
            "x.forwarded.for",
            "true-client-ip",
            "x-client-ip",
            "remote-user",
            "x-remote-user",
            "x-http-method",
            "proxy",
        ] {
            request
                .headers_mut()
                .insert(name, HeaderValue::from_static("forged"));
        }
        let answer = http1(address, request).await;
        assert_eq!(answer.body, "GET /orders/7 shop.example ");
        let seen = program.last_request();
        assert!(
            seen.headers.values().all(|value| value != "forged"),
            "{:?}",
            seen.headers
        );
        assert_eq!(seen.headers["merlon-caller"], spiffe("edge/main"));
        assert_eq!(seen.headers["x-forwarded-for"], "127.0.0.1");
        assert_eq!(seen.headers["x-forwarded-host"], "shop.example");
        assert_eq!(seen.headers["x-forwarded-proto"], "http");
        assert_eq!(edge.log.for_path("/orders/7").await["direction"], "gateway");
        let request = Request::get("http://shop.example/orders")
            .body(RequestBody::Empty)
            .unwrap();
        assert_eq!(
            h2c(address, request).await.body,
            "GET /orders shop.example "
        );
    });
}

#[test]
fn a_request_without_a_route_is_404_and_a_route_without_a_backend_is_500() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        let port = ports::free();
        let _edge = edge(
            &pair,
            json!({ "name": "http", "port": port.port(), "protocol": "HTTP" }),
            PERMIT_ALL,
        )
        .await;
        let address = connected(port).await;
        http1(address, get("shop.example", "/other"))
            .await
            .assert_refused(404, "http.no_route");
        http1(address, get("other.example", "/orders"))
            .await
            .assert_refused(404, "http.no_route");
        http1(address, get("shop.example", "/empty"))
            .await
            .assert_refused(500, "upstream.no_backend");
        http1(address, get("shop.example", "/gone"))
            .await
            .assert_refused(500, "upstream.no_backend");
        program.assert_not_reached();
    });
}

#[test]
fn the_gateway_denies_by_its_own_policies_without_naming_them() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        let port = ports::free();
        let policies = r#"
            @id("all") @reason("a test") permit (principal, action, resource);
            @id("no-admin") forbid (principal, action, resource) when { context has path && context.path like "*admin*" };
        "#;
        let _edge = edge(
            &pair,
            json!({ "name": "http", "port": port.port(), "protocol": "HTTP" }),
            policies,
        )
        .await;
        let address = connected(port).await;
        let answer = http1(address, get("shop.example", "/orders/admin")).await;
        answer.assert_refused(403, "authz.denied");
        assert!(answer.problem().get("policy").is_none());
        program.assert_not_reached();
        let smuggled = b"POST /orders HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
        assert!(raw(address, smuggled).await.starts_with("HTTP/1.1 400 "));
        // No 100 Continue precedes a refusal: the body of a denied request is not wanted.
        let expecting = b"POST /orders/admin HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 4\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n";
        let answer = raw(address, expecting).await;
        assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
        program.assert_not_reached();
    });
}

#[test]
fn https_serves_only_the_host_of_the_certificate_selected_by_sni() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        let port = ports::free();
        let directory = tempfile::tempdir().unwrap();
        let files = pair.ca.files("shop.example", directory.path());
        let listener =
            json!({ "name": "https", "port": port.port(), "protocol": "HTTPS", "tls": files });
        let by_tls = r#"@id("tls") @reason("a test") permit (principal, action == Action::"GET", resource)
            when { context has tls && context.tls.version == "TLSv1.3" && context.tls.cipher like "TLS13_*_SHA*" };"#;
        let _edge = edge(&pair, listener, by_tls).await;
        let address = connected(port).await;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(pair.ca.root.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        for (host, status) in [("shop.example", "200"), ("other.example", "421")] {
            let stream = TcpStream::connect(address).await.unwrap();
            let mut stream = connector
                .connect("shop.example".try_into().unwrap(), stream)
                .await
                .unwrap();
            let request =
                format!("GET /orders HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status} ")),
                "{answer}"
            );
        }
        assert_eq!(program.requests.get(), 1);
    });
}

#[test]
fn a_program_gets_the_http_version_of_its_port_whatever_the_client_uses() {
    run(async {
        for (protocol, kind, version) in [
            ("http", "text/plain", http::Version::HTTP_11),
            ("h2c", "text/plain", http::Version::HTTP_2),
            ("http", "application/grpc", http::Version::HTTP_2),
        ] {
            let program = Program::echo().await;
            let pair = Pair::new(&program, protocol, PERMIT_ALL);
            let (_edge, _, address) = plain_edge(&pair).await;
            let request = || post("shop.example", "/orders", kind, "hello");
            let answers = [
                h2c(address, request()).await,
                http1(address, request()).await,
            ];
            for answer in answers {
                assert_eq!(answer.status, 200, "{protocol} {kind}");
                assert_eq!(program.last_request().version, version, "{protocol} {kind}");
            }
        }
    });
}

#[test]
fn a_tunnel_to_an_http_port_is_closed_without_an_answer() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        let web = pair.ca.identity("shop/web");
        let expected = spiffe("shop/orders").parse().unwrap();
        let limits = crate::limits::Limits::default();
        let metrics = crate::telemetry::metrics::worker::WorkerMetrics::default();
        let dial = || {
            crate::upstream::dial::mesh(
                pair.orders.inbound,
                &expected,
                &web,
                MERLON_TCP,
                &limits,
                &metrics,
            )
        };
        for text in [
            "service=shop/orders;port=80;proto=tcp",
            "service=shop/orders;port=80;proto=h2",
            "",
            "x",
        ] {
            let mut stream = dial().await.unwrap();
            stream
                .write_u16(text.len().try_into().unwrap())
                .await
                .unwrap();
            stream.write_all(text.as_bytes()).await.unwrap();
            stream
                .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                .await
                .unwrap();
            let mut back = Vec::new();
            let _ = stream.read_to_end(&mut back).await;
            assert!(back.is_empty(), "{text}");
        }
        program.assert_not_reached();
    });
}
