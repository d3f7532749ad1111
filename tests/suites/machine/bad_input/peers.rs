//! Peers with a certificate of the mesh that send what no proxy sends.

use http::Method;
use merlon_tests::{mesh::identity, until, wait::limit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::mesh;

#[tokio::test]
async fn a_peer_cannot_name_a_service_that_the_proxy_does_not_serve() {
    let mesh = mesh().await;
    let web = mesh.test_peer("web").await;
    let honest = web.to("orders");
    honest.get("/claimed").await.is_ok();
    let claimed = |claim: &str| honest.clone().claiming(claim).get("/claimed");
    let long = "x".repeat(4_000);
    mesh.refuses(
        "orders",
        [
            "service=shop/payments;port=80;proto=h2",
            "service=shop/orders;port=99;proto=h2",
            "service=shop/orders;port=80;proto=tcp",
            "service=shop/orders;port=80;proto=h3",
            "service=../orders;port=80;proto=h2",
            "service=shop/orders",
            "port=80",
            "",
            &long,
        ]
        .map(|claim| (claim, claimed(claim), 404, "http.no_route")),
    )
    .await;
    let second = "service=shop/orders;port=80;proto=h2";
    let two = honest.get("/claimed").header("merlon-peer", second);
    let none = honest.clone().without_claim().get("/claimed");
    mesh.refuses(
        "orders",
        [
            ("two claims", two, 400, "http.header"),
            ("no claim", none, 404, "http.no_route"),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_peer_cannot_tunnel_past_the_checks_of_an_http_service() {
    let mesh = mesh().await;
    let web = mesh.test_peer("web").await;
    // The form of the preamble is right: a service of opaque bytes answers.
    let mut echo = web
        .to("echo")
        .claiming("service=shop/echo;port=80;proto=tcp")
        .open_tunnel()
        .await;
    echo.write_all(b"hello").await.unwrap();
    let mut back = [0; 5];
    limit("the echo", echo.read_exact(&mut back)).await.unwrap();
    assert_eq!(&back, b"hello");

    let refusals = || {
        let mut lines = mesh.sidecar("orders").log();
        lines.retain(|line| line.text("protocol") == "tcp");
        lines
    };
    let mut expected = refusals().len();
    for claim in [
        "service=shop/orders;port=80;proto=tcp",
        "service=shop/orders;port=80;proto=http/1.1",
        "service=shop/missing;port=80;proto=tcp",
        "",
    ] {
        let head = b"GET /tunnelled HTTP/1.1\r\nhost: orders.shop\r\n\r\n";
        let answer = web.to("orders").claiming(claim).tunnel(head).await;
        assert!(
            answer.is_empty(),
            "{claim}: {}",
            String::from_utf8_lossy(&answer)
        );
        expected += 1;
        until(format!("`{claim}` is logged"), async || {
            refusals().len() == expected
        })
        .await;
        refusals()[expected - 1]
            .has("reason", "http.no_route")
            .has("src", &identity("web"));
    }
    assert!(mesh.seen_at("orders", "/tunnelled").is_empty());
}

#[tokio::test]
async fn headers_that_a_peer_forges_do_not_reach_the_program() {
    let mesh = mesh().await;
    let web = mesh.test_peer("web").await;
    let mut request = web.to("orders").get("/forged").header("x-honest", "kept");
    for name in [
        "merlon-caller",
        "merlon-user",
        "merlon-decision-id",
        "merlon-continue",
        "merlon.caller",
        "x-merlon-caller",
        "x-merlon-user",
        "x-merlon-anything",
        "proxy",
        "proxy-user",
        "proxy-authorization",
        "remote-user",
        "x-remote-user",
        "x-authenticated-user",
        "x-forwarded-for",
        "x-forwarded-client-cert",
        "forwarded",
        "client-cert",
        "x-envoy-external-address",
        "l5d-client-id",
    ] {
        request = request.header(name, "forged");
    }
    let reply = request.await;
    let headers = reply.is_ok().json()["headers"].clone();
    assert!(!headers.to_string().contains("forged"), "{headers}");
    assert_eq!(headers["x-honest"], "kept", "{headers}");
    assert_eq!(headers["merlon-caller"], identity("web"), "{headers}");
}

#[tokio::test]
async fn trace_and_connect_are_405_from_a_peer_too() {
    let mesh = mesh().await;
    let web = mesh.test_peer("web").await;
    let trace = web.to("orders").call(Method::TRACE, "/trace", "");
    mesh.refuses("orders", [("TRACE", trace, 405, "http.method")])
        .await;
}
