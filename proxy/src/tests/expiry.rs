//! A certificate that expires and is not replaced.

use std::{sync::Arc, time::Duration};

use http::Request;
use merlon_certs::MeshTls;
use rustls_pki_types::UnixTime;

use crate::{
    control::{admin, identity::publish},
    limits::Limits,
    telemetry::metrics::{Direction, Handshake, Metrics, worker::WorkerMetrics},
    tests::harness::*,
    upstream::{body::RequestBody, dial},
};

/// Status and reasons of the page `/ready`.
async fn ready(node: &Node) -> (u16, serde_json::Value) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (shared, metrics) = (Arc::clone(&node.shared), Arc::new(Metrics::default()));
    let serving = tokio::task::spawn_local(admin::serve(listener, shared, metrics));
    let answer = http1(address, get("admin", "/ready")).await;
    serving.abort();
    let page: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    let reasons = page["reasons"].as_array().unwrap();
    let codes = reasons.iter().map(|reason| reason["code"].clone());
    (answer.status, codes.collect())
}

/// What the control thread does every second, at this time relative to the certificate's end.
fn tick(node: &Node, seconds: i64) {
    let identity = node.shared.identity.load_full();
    let ends = identity.as_ref().as_ref().unwrap().svid().not_after;
    let at = ends.as_secs().checked_add_signed(seconds).unwrap();
    let now = UnixTime::since_unix_epoch(Duration::from_secs(at));
    publish::check_validity(&node.shared, now);
}

fn claiming(path: &str) -> Request<RequestBody> {
    Request::get(format!("https://orders{path}"))
        .header("merlon-peer", "service=shop/orders;port=80;proto=http/1.1")
        .body(RequestBody::Empty)
        .unwrap()
}

#[test]
fn with_an_expired_certificate_nothing_is_accepted_and_open_connections_end() {
    run(async {
        let (release, held) = tokio::sync::watch::channel(false);
        let program = Program::serving(async move |_| {
            held.clone().wait_for(|go| *go).await.unwrap();
            http::Response::new(full("done"))
        })
        .await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        let web = pair.ca.identity("shop/web");
        let to = pair.orders.inbound;
        let mut open = connect_as_peer(&web, to, "shop/orders").await;
        let waiting = tokio::task::spawn_local(open.send_request(claiming("/open")));
        until("the request arrives", || program.requests.get() == 1).await;
        let connections = || {
            pair.orders
                .metrics
                .open_connections
                .value(Direction::Inbound)
        };

        tick(&pair.orders, -1);
        assert_eq!(ready(&pair.orders).await, (200, serde_json::json!([])));
        assert_eq!(connections(), 1);

        tick(&pair.orders, 0);
        let expired = serde_json::json!(["tls.expired"]);
        assert_eq!(ready(&pair.orders).await, (503, expired));
        waiting.await.unwrap().unwrap_err();
        until("the open connection ends", || connections() == 0).await;
        let done = || {
            let handshakes = &pair.orders.metrics.handshakes;
            handshakes.value(Direction::Inbound, Handshake::Done)
        };
        assert_eq!(done(), 1);
        let (limits, metrics) = (Limits::default(), WorkerMetrics::default());
        let expected = spiffe("shop/orders").parse().unwrap();
        let alpn = merlon_certs::MERLON_H2;
        let dialled = dial::mesh(to, &expected, &web, alpn, &limits, &metrics).await;
        assert!(dialled.is_err());
        assert_eq!(done(), 1, "no handshake is completed");
        assert_eq!(program.requests.get(), 1);

        // A new certificate ends it.
        release.send(true).unwrap();
        let renewed = pair.ca.identity("shop/orders");
        pair.orders.shared.identity.publish(Some(renewed));
        let answer = http1(pair.web.outbound, get("orders", "/after")).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "done"));
    });
}

#[test]
fn with_an_expired_certificate_no_peer_is_dialled() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        tick(&pair.web, 0);
        http1(pair.web.outbound, get("orders", "/expired"))
            .await
            .assert_refused(503, "config.unavailable");
        let line = pair.web.log.for_path("/expired").await;
        assert_eq!(line["reason"], "config.unavailable");
        let handshakes = &pair.orders.metrics.handshakes;
        assert_eq!(handshakes.value(Direction::Inbound, Handshake::Done), 0);
        assert_eq!(handshakes.value(Direction::Inbound, Handshake::Refused), 0);
        program.assert_not_reached();
    });
}

#[test]
fn a_proxy_whose_certificate_is_not_valid_yet_is_unready_until_it_is() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        let identity = pair.ca.identity_since("shop/orders", 2020);
        let begins = identity.svid().not_before;
        pair.orders.shared.identity.publish(Some(identity));
        let tick = |seconds| {
            let at = begins.as_secs().checked_add_signed(seconds).unwrap();
            let now = UnixTime::since_unix_epoch(Duration::from_secs(at));
            publish::check_validity(&pair.orders.shared, now);
        };
        for _ in 0..2 {
            tick(-1);
            let early = serde_json::json!(["tls.not_yet_valid"]);
            assert_eq!(ready(&pair.orders).await, (503, early));
        }
        // Peers verify it by their own clocks.
        let answer = http1(pair.web.outbound, get("orders", "/")).await;
        assert_eq!(answer.status, 200);
        tick(0);
        assert_eq!(ready(&pair.orders).await, (200, serde_json::json!([])));

        // With another one in force, the reason does not stay.
        tick(-1);
        pair.orders.shared.identity.publish(None);
        tick(-1);
        assert_eq!(ready(&pair.orders).await, (200, serde_json::json!([])));
    });
}

#[test]
fn a_certificate_that_is_read_again_in_its_last_second_is_not_put_in_force() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        let own = pair.ca.identity("shop/orders");
        let end = own.svid().not_after.as_secs();
        let read = |seconds| {
            let again = MeshTls::new(Arc::clone(own.svid()), Arc::clone(own.roots())).unwrap();
            let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
            publish::publish(&pair.orders.shared, &Metrics::default(), again, now);
        };
        tick(&pair.orders, 0);
        let expired = serde_json::json!(["tls.expired"]);
        read(end);
        assert_eq!(ready(&pair.orders).await, (503, expired));
        assert!(pair.orders.shared.identity.load().is_none());
        read(end - 1);
        assert_eq!(ready(&pair.orders).await, (200, serde_json::json!([])));
        assert!(pair.orders.shared.identity.load().is_some());
    });
}
