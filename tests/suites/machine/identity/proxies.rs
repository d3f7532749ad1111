//! Both sides of a connection between proxies, and what becomes of it when a certificate is renewed or expires.

use futures_util::{SinkExt as _, StreamExt as _};
use http::StatusCode;
use merlon_certs::{H2, MERLON_H2, MERLON_TCP};
use merlon_tests::{
    Client, Mesh,
    mesh::{MeshBuilder, identity, spiffe_id},
    refusals::Refusals,
    until,
    wait::{limit, until_some},
};
use rustls::{AlertDescription, NamedGroup};

use super::{csr_for, mesh};

#[tokio::test]
async fn proxies_speak_tls_1_3_with_a_post_quantum_key_exchange() {
    let mesh = mesh().await;
    let peer = mesh.test_peer("web").await;
    let stream = peer.to("orders").dial(MERLON_H2).await.unwrap();
    let (_, session) = stream.get_ref();
    assert_eq!(
        session.protocol_version(),
        Some(rustls::ProtocolVersion::TLSv1_3)
    );
    assert_eq!(session.alpn_protocol(), Some(MERLON_H2));
    let group = session.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, NamedGroup::X25519MLKEM768);
}

#[tokio::test]
async fn a_caller_refuses_a_peer_of_another_identity_in_the_handshake() {
    let mesh = mesh().await;
    let peer = mesh.test_peer("web").await;
    // Another workload's proxy answers at the address, so this side ends the handshake.
    let payments = mesh.sidecar("payments").inbound();
    let refused = peer
        .to_address(payments, spiffe_id("orders"))
        .dial(MERLON_H2)
        .await
        .unwrap_err();
    let text = format!("{refused:?}");
    assert!(text.contains("OtherIdentity"), "{text}");
    // By its own name, it is accepted.
    peer.to("payments").dial(MERLON_H2).await.unwrap();
}

#[tokio::test]
async fn a_service_address_that_leads_to_another_workload_is_refused_by_the_callers_proxy() {
    let mesh = Mesh::new()
        .service("orders")
        .allow("web", "GET", "/**")
        .service("payments")
        .start()
        .await;
    let web = mesh.as_workload("web");
    web.get("orders", "/").await.is_ok();
    let address = |workload| mesh.sidecar(workload).inbound().to_string();
    let (orders, payments) = (address("orders"), address("payments"));
    let workload = std::fs::read_to_string(mesh.resources().join("orders-workload.yaml")).unwrap();
    // Two workloads must not have the same address, so they swap theirs.
    mesh.remove("orders-workload.yaml");
    mesh.edit("payments-workload.yaml", &payments, &orders);
    mesh.write(
        "orders-workload.yaml",
        &workload.replace(&orders, &payments),
    );
    let reply = until_some("the wrong identity is detected", async || {
        let reply = web.get("orders", "/").await;
        (reply.json()["reason"] == "upstream.identity").then_some(reply)
    })
    .await;
    reply.is_problem(StatusCode::SERVICE_UNAVAILABLE, "upstream.identity");
    mesh.log_of("web", &reply)
        .await
        .has("reason", "upstream.identity");
    assert_eq!(mesh.requests_seen_by("payments"), 0);
}

#[tokio::test]
async fn the_inbound_address_accepts_no_connection_without_a_certificate_of_the_mesh() {
    let (mesh, other) = (small_mesh().start().await, small_mesh().prepare().await);
    other.control_plane().start().await;
    let orders = mesh.sidecar("orders");
    let labels = "direction=\"inbound\",result=\"refused\"";
    let refused = async || orders.metric("merlon_tls_handshakes_total", labels).await;
    let web = mesh.test_peer("web").await;
    web.to("orders").get("/known").await.is_ok();
    assert_eq!(refused().await, 0.0);

    // Plain HTTP.
    let plain = Client::new(orders.inbound(), "shop").get("orders", "/plain");
    assert!(plain.send().await.is_err());
    // Both of these trust the server: it is the server that ends the handshake.
    let anonymous = web.clone().without_certificate();
    assert_eq!(
        anonymous.to("orders").alert(MERLON_H2).await,
        AlertDescription::CertificateRequired
    );
    let foreign = web.clone().signed_by(&other.test_peer("web").await);
    for alpn in [MERLON_H2, MERLON_TCP] {
        assert_eq!(foreign.to("orders").alert(alpn).await, ANOTHER_ROOT);
    }
    until("each failed handshake is counted", async || {
        refused().await == 4.0
    })
    .await;
    assert_eq!(mesh.seen_at("orders", "/known").len(), 1);
    assert_eq!(mesh.requests_seen_by("orders"), 1);
}

#[tokio::test]
async fn the_control_plane_accepts_no_certificate_of_another_mesh() {
    let (mesh, other) = (small_mesh().prepare().await, small_mesh().prepare().await);
    for mesh in [&mesh, &other] {
        mesh.control_plane().start().await;
    }
    let control_plane = mesh.control_plane();
    let failed = async || {
        let name = "merlon_tls_handshakes_failed_total";
        control_plane.metric(name, "").await
    };
    let web = mesh.test_peer("web").await;
    let foreign = web.clone().signed_by(&other.test_peer("web").await);
    assert_eq!(failed().await, 0.0);

    assert_eq!(foreign.to_control_plane().alert(H2).await, ANOTHER_ROOT);
    until("the failed handshake is counted", async || {
        failed().await == 1.0
    })
    .await;
    let refused = control_plane.log();
    assert!(refused.contains("\"tls.refused\""), "{refused}");
    // The peer's own certificate renews itself.
    web.issue(csr_for("web"), None).await.unwrap();
}

/// The alert for a certificate of another mesh. The roots of all meshes have the same name, so the server finds a root by
/// the name of the issuer, and the signature is not that root's.
const ANOTHER_ROOT: AlertDescription = AlertDescription::DecryptError;

/// `orders`, which `web` may read.
fn small_mesh() -> MeshBuilder {
    Mesh::new().service("orders").allow("web", "GET", "/**")
}

#[tokio::test]
async fn the_certificate_identifies_the_caller_whatever_the_headers_contain() {
    let mesh = mesh().await;
    let reply = mesh
        .as_workload("batch")
        .get("orders", "/pretend")
        .header(
            "x-forwarded-client-cert",
            &format!("URI={}", identity("web")),
        )
        .header("merlon-peer", "service=shop/orders;port=80;proto=http/1.1")
        .await;
    reply.is_problem(StatusCode::FORBIDDEN, "authz.denied");
    mesh.log_of("orders", &reply)
        .await
        .has("src", &identity("batch"));
}

#[tokio::test]
async fn a_proxy_that_crashes_restarts_with_its_identity_and_state_while_the_control_plane_is_down()
{
    let mesh = Mesh::new()
        .service("orders")
        .allow("web", "GET", "/**")
        .start()
        .await;
    let web = mesh.as_workload("web");
    web.get("orders", "/").await.is_ok();
    mesh.control_plane().kill9();
    for workload in ["orders", "web"] {
        mesh.sidecar(workload).kill9();
        mesh.sidecar(workload).start().await;
    }
    web.get("orders", "/").await.is_ok();
}

#[tokio::test]
async fn a_rotation_replaces_the_certificate_and_keeps_open_connections() {
    let mesh = Mesh::new()
        .service("orders")
        .allow("web", "GET", "/**")
        .start()
        .await;
    let web = mesh.as_workload("web");
    let mut socket = web.web_socket("orders", "/socket").await.unwrap();
    let before = mesh.status_of("orders").await["certificateSerial"].clone();
    let (old, new) = mesh.rotate("orders").await;
    assert_eq!(before, old.as_str());
    assert_ne!(old, new);
    until("the status shows the new certificate", async || {
        mesh.status_of("orders").await["certificateSerial"] == new.as_str()
    })
    .await;
    socket.send("still there".into()).await.unwrap();
    let echo = limit("the echo", socket.next()).await.unwrap().unwrap();
    assert_eq!(echo.into_text().unwrap(), "still there");
    web.get("orders", "/").await.is_ok();
}

#[tokio::test]
async fn a_certificate_that_expires_ends_every_connection_and_nothing_new_is_accepted_or_sent() {
    let mesh = small_mesh()
        .mesh("  certificates: { lifetime: 30s }\n")
        .start()
        .await;
    let web = mesh.as_workload("web");
    web.get("orders", "/before").await.is_ok();
    let mut socket = web.web_socket("orders", "/socket").await.unwrap();
    let peer = mesh.test_peer("web").await;

    mesh.control_plane().kill9();
    for workload in ["orders", "web"] {
        mesh.sidecar(workload).until_unready("tls.expired").await;
    }
    let ended = limit("the end of the WebSocket", socket.next()).await;
    assert!(matches!(ended, None | Some(Err(_))), "{ended:?}");
    // The caller's proxy dials no peer.
    Refusals::by(mesh.sidecar("web"), mesh.app("orders"))
        .each([(
            "after",
            web.get("orders", "/after"),
            503,
            "config.unavailable",
        )])
        .await;
    // The other proxy closes connections before any TLS message.
    let refused = peer.to("orders").dial(MERLON_H2).await.unwrap_err();
    let cause = refused.get_ref();
    assert!(
        cause.is_none_or(|cause| !cause.is::<rustls::Error>()),
        "{refused:?}"
    );
    let mut seen = mesh.seen_by("orders");
    seen.retain(|request| request.target != "/socket");
    assert_eq!(seen.len(), 1, "{seen:?}");
}
