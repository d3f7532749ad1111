//! The connection between two sidecars fails: what the caller receives, what the program sees, what the log contains, and
//! that requests succeed when the wire carries again.

mod exchange;
mod other_protocols;

use http::StatusCode;
use merlon_tests::{
    Mesh,
    mesh::{Guard, Shared},
};

use self::exchange::Exchange;

/// Each test has a service of its own, with a wire in front of its sidecar.
async fn mesh() -> Guard {
    static MESH: Shared = Shared::new();
    MESH.get(|| {
        let http = [
            "cut",
            "reset",
            "unanswered",
            "forgotten",
            "silent",
            "dripping",
            "stalled",
            "socket",
            "goaway",
        ];
        let mesh = http.iter().fold(Mesh::new(), |mesh, name| {
            mesh.service(name).allow("web", "http", "/**").wire()
        });
        // The caller gives up a handshake before the peer does.
        mesh.tcp_service("bytes")
            .allow_tcp("web")
            .wire()
            .limits("handshakeTimeout: 60s, upstreamHandshakeTimeout: 8s, upstreamKeepAlive: 8s")
            .start()
    })
    .await
}

#[tokio::test]
async fn a_cut_in_mid_body_breaks_the_response_and_requests_succeed_when_the_wire_carries_again() {
    let mesh = mesh().await;
    let (web, wire) = (mesh.as_workload("web"), mesh.wire_to("cut"));
    let exchange = Exchange::open(&web, "cut").await;

    wire.cut();
    exchange.breaks().await;
    let sent = [
        ("host", "cut.shop"),
        ("path", "/stream"),
        ("aborted", "true"),
    ];
    mesh.log_with("web", &sent).await.has("status", "200");
    mesh.log_with("cut", &sent[1..]).await.has("status", "200");

    let refused = web.get("cut", "/while").await;
    refused.is_problem(StatusCode::SERVICE_UNAVAILABLE, "upstream.connect");
    mesh.log_with("web", &[("path", "/while")])
        .await
        .has("reason", "upstream.connect")
        .has("status", "503");
    assert_eq!(mesh.requests_seen_by("cut"), 1);

    wire.heal();
    web.get("cut", "/after").await.is_ok();
    assert_eq!(mesh.requests_seen_by("cut"), 2);
}

#[tokio::test]
async fn a_reset_in_mid_body_breaks_that_response_and_the_next_request_opens_a_connection() {
    let mesh = mesh().await;
    let (web, wire) = (mesh.as_workload("web"), mesh.wire_to("reset"));
    let exchange = Exchange::open(&web, "reset").await;
    let before = wire.connections();

    wire.reset();
    exchange.breaks().await;
    let sent = [("host", "reset.shop"), ("aborted", "true")];
    mesh.log_with("web", &sent).await.has("status", "200");

    web.get("reset", "/after").await.is_ok();
    assert_eq!(wire.connections(), before + 1);
    assert_eq!(mesh.requests_seen_by("reset"), 2);
}

#[tokio::test]
async fn a_request_that_was_sent_before_the_reset_is_answered_with_502_and_not_repeated() {
    let mesh = mesh().await;
    let (web, wire) = (mesh.as_workload("web"), mesh.wire_to("unanswered"));
    let resets = mesh
        .metric(
            "web",
            "merlon_refusals_total",
            &[("reason", "upstream.reset")],
        )
        .await;
    // The program responds only after the end of the body.
    let unfinished = Exchange::send(&web, "unanswered", "/orders").await;
    merlon_tests::until("the program sees the request", async || {
        mesh.requests_seen_by("unanswered") == 1
    })
    .await;

    wire.reset();
    let reply = unfinished.reply().await;
    reply.is_problem(StatusCode::BAD_GATEWAY, "upstream.reset");
    mesh.log_with("web", &[("host", "unanswered.shop")])
        .await
        .has("reason", "upstream.reset");
    resets.grew_by(1).await;
    assert_eq!(mesh.requests_seen_by("unanswered"), 1);
}

#[tokio::test]
async fn a_peer_that_is_gone_silently_is_noticed_and_the_next_request_opens_a_connection() {
    let mesh = mesh().await;
    let (web, wire) = (mesh.as_workload("web"), mesh.wire_to("forgotten"));
    web.get("forgotten", "/before").await.is_ok();
    let before = wire.connections();

    wire.half_open();
    let reply = web.get("forgotten", "/lost").await;
    reply.is_problem(StatusCode::GATEWAY_TIMEOUT, "upstream.timeout");
    mesh.log_with("web", &[("path", "/lost")])
        .await
        .has("reason", "upstream.timeout");
    assert_eq!(mesh.requests_seen_by("forgotten"), 1);

    web.get("forgotten", "/after").await.is_ok();
    assert_eq!(wire.connections(), before + 1);
    assert_eq!(mesh.requests_seen_by("forgotten"), 2);
}

#[tokio::test]
async fn a_peer_that_accepts_and_never_completes_the_handshake_is_503() {
    let mesh = mesh().await;
    let (web, wire) = (mesh.as_workload("web"), mesh.wire_to("silent"));
    wire.stall(0);
    handshake_times_out(&mesh, "silent").await;
    wire.heal();
    web.get("silent", "/after").await.is_ok();
    assert_eq!(mesh.requests_seen_by("silent"), 1);
}

#[tokio::test]
async fn a_peer_that_sends_its_handshake_byte_by_byte_is_503() {
    let mesh = mesh().await;
    let (web, wire) = (mesh.as_workload("web"), mesh.wire_to("dripping"));
    wire.drip(1);
    handshake_times_out(&mesh, "dripping").await;
    wire.heal();
    web.get("dripping", "/after").await.is_ok();
    assert_eq!(mesh.requests_seen_by("dripping"), 1);
}

/// The next request to `service` is refused because the handshake takes too long; the program sees nothing.
async fn handshake_times_out(mesh: &Mesh, service: &str) {
    let reply = mesh.as_workload("web").get(service, "/before").await;
    reply.is_problem(StatusCode::SERVICE_UNAVAILABLE, "upstream.connect_timeout");
    let host = format!("{service}.shop");
    mesh.log_with("web", &[("host", &host)])
        .await
        .has("reason", "upstream.connect_timeout")
        .has("status", "503");
    assert_eq!(mesh.requests_seen_by(service), 0);
}

#[tokio::test]
async fn a_body_that_stalls_in_the_middle_of_a_tls_record_arrives_whole_when_the_wire_carries_again()
 {
    let mesh = mesh().await;
    let (web, wire) = (mesh.as_workload("web"), mesh.wire_to("stalled"));
    let mut exchange = Exchange::open(&web, "stalled").await;
    wire.stall(10);
    let piece = "x".repeat(100_000);
    exchange.write(piece.clone()).await;
    wire.heal();
    assert_eq!(exchange.read(piece.len()).await, piece);
    exchange.ends().await;
    mesh.log_with("web", &[("host", "stalled.shop")])
        .await
        .has("status", "200")
        .lacks("aborted");
}

#[tokio::test]
async fn after_goaway_the_open_response_arrives_whole_and_the_next_request_opens_a_connection() {
    let mesh = mesh().await;
    let (web, wire) = (mesh.as_workload("web"), mesh.wire_to("goaway"));
    let peer = exchange::GoAwayPeer::start(&mesh.test_peer("goaway").await).await;
    wire.lead_to(peer.address());
    let before = wire.connections();
    let mut exchange = Exchange::open(&web, "goaway").await;

    peer.go_away();
    // Until the proxy has read it, requests may still take the first connection. None of them fails.
    merlon_tests::until("requests take another connection", async || {
        web.get("goaway", "/next").await.is_ok();
        wire.connections() == before + 2
    })
    .await;

    exchange.write("more".to_owned()).await;
    assert_eq!(exchange.read(4).await, "more");
    exchange.ends().await;
    mesh.log_with("web", &[("host", "goaway.shop"), ("path", "/stream")])
        .await
        .has("status", "200")
        .lacks("aborted");
}
