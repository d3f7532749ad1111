//! The target that a peer names, on connections redirected from a port of the program.

use std::net::SocketAddr;

use http::Request;
use merlon_certs::MERLON_TCP;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{tests::harness::*, upstream::body::RequestBody};

/// `shop/orders` with HTTP port 80 and TCP port 5432, each served by its own program.
fn both(http: &Program, bytes: &Program) -> serde_json::Value {
    let mut service = service("shop/orders", 80, http.port(), "http", PERMIT_NAMESPACE);
    let port = serde_json::json!({ "port": 5432, "targetPort": bytes.port(), "protocol": "tcp" });
    service["ports"].as_array_mut().unwrap().push(port);
    service
}

const PERMIT_NAMESPACE: &str =
    r#"@id("all") permit (principal in Namespace::"shop", action, resource);"#;

#[test]
fn a_request_reaches_only_the_dialled_port() {
    run(async {
        let (http, bytes) = (Program::echo().await, Program::echo().await);
        let pair = Pair::with(both(&http, &bytes), "http");
        let web = pair.ca.identity("shop/web");
        let claim = "service=shop/orders;port=80;proto=http/1.1";
        let ask = async |address: SocketAddr| {
            let request = Request::get("http://orders.shop/").header("merlon-peer", claim);
            let request = request.body(RequestBody::Empty).unwrap();
            send_as_peer_to(&web, address, "shop/orders", request).await
        };
        // For example, a NetworkPolicy permits only the other port.
        let answer = ask(pair.orders.redirected_from(bytes.port()).await).await;
        answer.assert_refused(404, "http.no_route");
        http.assert_not_reached();
        bytes.assert_not_reached();
        let answer = ask(pair.orders.redirected_from(http.port()).await).await;
        assert_eq!(answer.status, 200);
        // A connection to the proxy's own port dials no other port.
        assert_eq!(ask(pair.orders.inbound).await.status, 200);
    });
}

#[test]
fn a_tunnel_reaches_only_the_dialled_port() {
    run(async {
        let (http, bytes) = (Program::echo().await, Program::echo().await);
        let pair = Pair::with(both(&http, &bytes), "http");
        let web = pair.ca.identity("shop/web");
        let expected = spiffe("shop/orders").parse().unwrap();
        let limits = crate::limits::Limits::default();
        let metrics = crate::telemetry::metrics::worker::WorkerMetrics::default();
        let ask = async |address: SocketAddr| {
            let dialled = crate::upstream::dial::mesh(
                address, &expected, &web, MERLON_TCP, &limits, &metrics,
            );
            let mut stream = dialled.await.unwrap();
            let text = "service=shop/orders;port=5432;proto=tcp";
            let length = text.len().try_into().unwrap();
            stream.write_u16(length).await.unwrap();
            let request = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
            let all = format!("{text}{request}");
            stream.write_all(all.as_bytes()).await.unwrap();
            let mut back = Vec::new();
            let _ = stream.read_to_end(&mut back).await;
            String::from_utf8(back).unwrap()
        };
        assert_eq!(
            ask(pair.orders.redirected_from(http.port()).await).await,
            ""
        );
        http.assert_not_reached();
        bytes.assert_not_reached();
        let back = ask(pair.orders.redirected_from(bytes.port()).await).await;
        assert!(back.starts_with("HTTP/1.1 200 "), "{back}");
    });
}

#[test]
fn a_proxy_opens_a_connection_to_each_port_that_it_calls() {
    run(async {
        let (http, other) = (Program::echo().await, Program::echo().await);
        let mut service = service("shop/orders", 80, http.port(), "http", PERMIT_NAMESPACE);
        let second =
            serde_json::json!({ "port": 81, "targetPort": other.port(), "protocol": "http" });
        service["ports"].as_array_mut().unwrap().push(second);
        let mut pair = Pair::with(service, "http");
        let (first, second) = (
            pair.orders.redirected_from(http.port()).await,
            pair.orders.redirected_from(other.port()).await,
        );
        let mut to = destination("shop/orders", 80, "http", first, Some("shop/orders"));
        let mut port = to.ports[0].clone();
        port.port = 81;
        to.ports.push(port);
        to.endpoints[0].ports = [(80, first.port()), (81, second.port())].into();
        pair.web_state = State::new("shop/web").with_destination(to);
        pair.web.apply(&pair.web_state);
        for _ in 0..3 {
            for host in ["orders:80", "orders:81"] {
                let answer = http1(pair.web.outbound, get(host, "/")).await;
                assert_eq!(answer.status, 200, "{host}");
            }
        }
        assert_eq!((http.requests.get(), other.requests.get()), (3, 3));
    });
}
