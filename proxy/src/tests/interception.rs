//! What a peer claims to mean, where rules led its connection here from a port of the program.

use std::net::SocketAddr;

use http::Request;
use merlon_certs::MERLON_TCP;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{tests::harness::*, upstream::body::RequestBody};

/// `shop/orders` with a port 80 of HTTP and a port 5432 of bytes, each a program of its own.
fn both(http: &Program, bytes: &Program) -> serde_json::Value {
    let mut service = service("shop/orders", 80, http.port(), "http", EVERYTHING);
    let port = serde_json::json!({ "port": 5432, "targetPort": bytes.port(), "protocol": "tcp" });
    service["ports"].as_array_mut().unwrap().push(port);
    service
}

const EVERYTHING: &str = r#"@id("all") permit (principal in Namespace::"shop", action, resource);"#;

#[test]
fn a_request_reaches_the_port_that_was_dialled_and_no_other() {
    run(async {
        let (http, bytes) = (Program::echo().await, Program::echo().await);
        let pair = Pair::with(both(&http, &bytes), "http");
        let web = pair.ca.identity("shop/web");
        let claim = "service=shop/orders;port=80;proto=http/1.1";
        let ask = async |address: SocketAddr| {
            let request = Request::get("http://orders.shop/").header("merlon-peer", claim);
            let request = request.body(RequestBody::Empty).unwrap();
            ask_as_peer_at(&web, address, "shop/orders", request).await
        };
        // Say, a NetworkPolicy lets it dial the other port alone.
        let answer = ask(pair.orders.led_from(bytes.port()).await).await;
        answer.refused(404, "http.no_route");
        http.saw_nothing();
        bytes.saw_nothing();
        let answer = ask(pair.orders.led_from(http.port()).await).await;
        assert_eq!(answer.status, 200);
        // At the proxy's own port nothing else was dialled.
        assert_eq!(ask(pair.orders.inbound).await.status, 200);
    });
}

#[test]
fn a_tunnel_reaches_the_port_that_was_dialled_and_no_other() {
    run(async {
        let (http, bytes) = (Program::echo().await, Program::echo().await);
        let pair = Pair::with(both(&http, &bytes), "http");
        let web = pair.ca.identity("shop/web");
        let expected = spiffe("shop/orders").parse().unwrap();
        let metrics = crate::telemetry::metrics::worker::WorkerMetrics::default();
        let ask = async |address: SocketAddr| {
            let dialled =
                crate::upstream::dial::mesh(address, &expected, &web, MERLON_TCP, &metrics);
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
        assert_eq!(ask(pair.orders.led_from(http.port()).await).await, "");
        http.saw_nothing();
        bytes.saw_nothing();
        let back = ask(pair.orders.led_from(bytes.port()).await).await;
        assert!(back.starts_with("HTTP/1.1 200 "), "{back}");
    });
}

#[test]
fn a_proxy_sends_for_each_port_by_a_connection_to_that_port() {
    run(async {
        let (http, other) = (Program::echo().await, Program::echo().await);
        let mut service = service("shop/orders", 80, http.port(), "http", EVERYTHING);
        let second =
            serde_json::json!({ "port": 81, "targetPort": other.port(), "protocol": "http" });
        service["ports"].as_array_mut().unwrap().push(second);
        let mut pair = Pair::with(service, "http");
        let (first, second) = (
            pair.orders.led_from(http.port()).await,
            pair.orders.led_from(other.port()).await,
        );
        let mut to = destination("shop/orders", 80, "http", first, Some("shop/orders"));
        let mut port = to.ports[0].clone();
        port.port = 81;
        to.ports.push(port);
        to.endpoints[0].ports = [(80, first.port()), (81, second.port())].into();
        pair.web_state = State::of("shop/web").calling(to);
        pair.web.take(&pair.web_state);
        for _ in 0..3 {
            for host in ["orders:80", "orders:81"] {
                let answer = http1(pair.web.outbound, get(host, "/")).await;
                assert_eq!(answer.status, 200, "{host}");
            }
        }
        assert_eq!((http.requests.get(), other.requests.get()), (3, 3));
    });
}
