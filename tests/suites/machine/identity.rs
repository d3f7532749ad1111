//! Workload identity: certificates, join tokens, and both sides of a connection between proxies.

use http::{Method, StatusCode};
use merlon_certs::{MERLON_H2, PrivateKey};
use merlon_tests::{
    Client, Mesh, folder,
    mesh::{Guard, Shared, Sidecar, identity, spiffe_id},
    openbao::OpenBao,
    until,
};
use rustls::NamedGroup;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::Code;

static MESH: Shared = Shared::new();

async fn mesh() -> Guard {
    MESH.get(async || {
        Mesh::new()
            .service("orders")
            .allow("web", "GET", "/**")
            .service("payments")
            .caller("batch")
            .start()
            .await
    })
    .await
}

fn csr_for(workload: &str) -> Vec<u8> {
    PrivateKey::generate()
        .unwrap()
        .csr(&spiffe_id(workload))
        .unwrap()
}

// --- join tokens ----------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_join_token_is_valid_for_one_certificate_of_its_own_identity() {
    let mesh = mesh().await;
    let token = mesh.control_plane().join_token("batch").await;
    let client = mesh.anonymous_peer(&token);

    let refused = client
        .issue(csr_for("web"), Some(&token))
        .await
        .unwrap_err();
    assert!(
        matches!(
            refused.code(),
            Code::PermissionDenied | Code::Unauthenticated | Code::InvalidArgument
        ),
        "{refused:?}"
    );

    // The refused request may have used up the token; a new one shows that a successful request does.
    let token = mesh.control_plane().join_token("batch").await;
    client.issue(csr_for("batch"), Some(&token)).await.unwrap();
    let again = client
        .issue(csr_for("batch"), Some(&token))
        .await
        .unwrap_err();
    assert!(
        matches!(again.code(), Code::PermissionDenied | Code::Unauthenticated),
        "{again:?}"
    );
    assert!(!again.message().contains(&token), "{again:?}");
}

#[tokio::test]
async fn an_invented_join_token_is_refused() {
    let mesh = mesh().await;
    let token = mesh.control_plane().join_token("batch").await;
    let client = mesh.anonymous_peer(&token);
    let mut parts: Vec<_> = token.split('.').map(str::to_owned).collect();
    let secret = parts.len() - 2;
    parts[secret] = "A".repeat(43);
    for invented in [
        parts.join("."),
        "merlon-join.1.mesh.test".to_owned(),
        String::new(),
        "x".repeat(100_000),
    ] {
        let refused = client
            .issue(csr_for("batch"), Some(&invented))
            .await
            .unwrap_err();
        assert_ne!(refused.code(), Code::Internal, "{refused:?}");
    }
    // The real one is still valid.
    client.issue(csr_for("batch"), Some(&token)).await.unwrap();
}

#[tokio::test]
async fn no_join_token_is_made_for_an_identity_outside_the_mesh() {
    let mesh = mesh().await;
    for wrong in [
        "spiffe://other.test/ns/shop/sa/web",
        "spiffe://mesh.test/ns/shop",
        "nonsense",
        "",
    ] {
        let request = json!({ "identity": wrong });
        let reply = mesh
            .control_plane()
            .call(Method::POST, "/v1/join-tokens", &request)
            .await;
        assert!(reply.status.is_client_error(), "{wrong}: {reply:?}");
    }
}

#[tokio::test]
async fn without_a_token_and_without_a_certificate_nothing_is_issued() {
    let mesh = mesh().await;
    let token = mesh.control_plane().join_token("batch").await;
    let refused = mesh
        .anonymous_peer(&token)
        .issue(csr_for("batch"), None)
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused:?}");
}

#[tokio::test]
async fn a_certificate_renews_its_own_identity_and_no_other() {
    let mesh = mesh().await;
    let peer = mesh.test_peer("batch").await;
    let renewed = peer.issue(csr_for("batch"), None).await.unwrap();
    assert!(!renewed.chain.is_empty());
    let refused = peer.issue(csr_for("web"), None).await.unwrap_err();
    assert!(
        matches!(
            refused.code(),
            Code::PermissionDenied | Code::InvalidArgument
        ),
        "{refused:?}"
    );
}

#[tokio::test]
async fn an_invalid_certificate_request_is_refused() {
    let mesh = mesh().await;
    let peer = mesh.test_peer("batch").await;
    let mut broken = csr_for("batch");
    // Its last bytes are the signature.
    *broken.last_mut().unwrap() ^= 1;
    for csr in [Vec::new(), b"not DER".to_vec(), vec![0x30; 100_000], broken] {
        let refused = peer.issue(csr, None).await.unwrap_err();
        assert!(
            matches!(refused.code(), Code::InvalidArgument | Code::OutOfRange),
            "{refused:?}"
        );
    }
}

#[tokio::test]
async fn a_used_join_token_stays_invalid_after_the_control_plane_restarts() {
    let mesh = Mesh::new()
        .service("orders")
        .allow("web", "GET", "/**")
        .start()
        .await;
    let token = mesh.control_plane().join_token("web").await;
    mesh.anonymous_peer(&token)
        .issue(csr_for("web"), Some(&token))
        .await
        .unwrap();
    mesh.control_plane().kill9();
    mesh.control_plane().restart().await;
    let again = mesh
        .anonymous_peer(&token)
        .issue(csr_for("web"), Some(&token))
        .await
        .unwrap_err();
    assert!(
        matches!(again.code(), Code::PermissionDenied | Code::Unauthenticated),
        "{again:?}"
    );
}

#[tokio::test]
async fn a_proxy_with_a_used_join_token_reports_how_to_get_another() {
    let mesh = Mesh::new()
        .service("orders")
        .allow("web", "GET", "/**")
        .start()
        .await;
    let token = mesh.control_plane().join_token("web").await;
    mesh.anonymous_peer(&token)
        .issue(csr_for("web"), Some(&token))
        .await
        .unwrap();
    let flags = [
        ("--identity", "shop/web"),
        ("--control-plane", &mesh.control_plane().url()),
        ("--join-token", &token),
    ];
    let flags = flags.iter().flat_map(|(flag, value)| [*flag, *value]);
    let late = Sidecar::new("late", mesh.folder(), flags.map(str::to_owned).collect());
    late.launch();

    let fix = "merlon token create --identity shop/web";
    until("the proxy logs it as an error", async || {
        let log = late.process_log();
        let mut lines = log.lines();
        lines.any(|line| line.contains("\"ERROR\"") && line.contains(fix))
    })
    .await;
    let ready = late.page("/ready").await;
    assert!(
        ready.contains("tls.no_identity") && ready.contains(fix),
        "{ready}"
    );
}

// --- between proxies ------------------------------------------------------------------------------------------------

#[tokio::test]
async fn proxies_speak_tls_1_3_with_a_post_quantum_key_exchange() {
    let mesh = mesh().await;
    let peer = mesh.test_peer("web").await;
    let stream = peer
        .dial(mesh.sidecar("orders").inbound(), "orders", MERLON_H2)
        .await
        .unwrap();
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
    // Another workload's proxy answers at the address, so the handshake fails.
    let reached = peer
        .dial(mesh.sidecar("payments").inbound(), "orders", MERLON_H2)
        .await;
    assert!(reached.is_err());
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
    let reply = merlon_tests::wait::until_some("the wrong identity is detected", async || {
        let reply = web.get("orders", "/").await;
        (reply.json()["reason"] == "upstream.identity").then_some(reply)
    })
    .await;
    reply.is_problem(StatusCode::SERVICE_UNAVAILABLE, "upstream.identity");
    assert_eq!(mesh.requests_seen_by("payments"), 0);
}

#[tokio::test]
async fn the_inbound_address_accepts_no_connection_without_a_certificate_of_the_mesh() {
    let mesh = mesh().await;
    let inbound = mesh.sidecar("orders").inbound();
    // Plain HTTP.
    let plain = Client::new(inbound, "shop")
        .get("orders", "/plain")
        .send()
        .await;
    assert!(plain.is_err(), "{plain:?}");
    // TLS without a certificate: in TLS 1.3 the client sees the refusal when it reads.
    let token = mesh.control_plane().join_token("web").await;
    let token: merlon_api::JoinToken = token.parse().unwrap();
    let bootstrap = merlon_certs::Bootstrap::RootHash(token.root_sha256());
    let tls = bootstrap
        .client_config(&spiffe_id("orders"), &[MERLON_H2])
        .unwrap();
    if let Ok(mut stream) = merlon_tests::mesh::tls_connect(inbound, tls).await {
        let _ = stream
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
            .await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(answer.is_empty(), "{answer:?}");
    }
    // A certificate that another mesh's root signed.
    let other = Mesh::new().service("orders").caller("web").start().await;
    let foreign = other.test_peer("web").await;
    assert!(foreign.dial(inbound, "orders", MERLON_H2).await.is_err());
    assert!(mesh.seen_at("orders", "/plain").is_empty());
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

// --- renewal --------------------------------------------------------------------------------------------------------

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
    use futures_util::{SinkExt as _, StreamExt as _};
    socket.send("still there".into()).await.unwrap();
    assert_eq!(
        socket.next().await.unwrap().unwrap().into_text().unwrap(),
        "still there"
    );
    web.get("orders", "/").await.is_ok();
}

// --- OpenBao --------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn certificates_are_signed_by_openbao_with_a_token_that_has_no_other_rights() {
    let bao = OpenBao::shared().await;
    let folder = folder::fresh();
    let (token, spec) = bao.prepare_for_merlon(folder.path()).await;
    let mesh = Mesh::new()
        .service("orders")
        .allow("web", "GET", "/**")
        .mesh(&spec)
        .start()
        .await;
    mesh.as_workload("web").get("orders", "/").await.is_ok();

    let (old, new) = mesh.rotate("orders").await;
    assert_ne!(old, new);
    mesh.as_workload("web").get("orders", "/").await.is_ok();

    // The token that Merlon holds is not a root token and cannot become one.
    let token = std::fs::read_to_string(token).unwrap();
    let http = reqwest::Client::new();
    for (method, path) in [
        (Method::GET, "sys/mounts"),
        (Method::POST, "auth/token/create"),
        (Method::POST, "pki-root/root/generate/internal"),
    ] {
        let url = format!("{}/v1/{path}", bao.address());
        let answer = http
            .request(method, url)
            .header("x-vault-token", token.trim())
            .json(&json!({}))
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 403, "{path}");
    }
}

#[tokio::test]
async fn while_openbao_is_sealed_or_down_traffic_continues_and_renewal_resumes_on_its_own() {
    let bao = OpenBao::start().await;
    let folder = folder::fresh();
    let (_, spec) = bao.prepare_for_merlon(folder.path()).await;
    let mesh = Mesh::new()
        .service("orders")
        .allow("web", "GET", "/**")
        .mesh(&spec)
        .start()
        .await;
    let web = mesh.as_workload("web");
    web.get("orders", "/").await.is_ok();
    let id = mesh.proxy_id("orders").await;
    let rotate = format!("/v1/proxies/{id}/rotate");
    let try_rotation = async || {
        mesh.control_plane()
            .call(Method::POST, &rotate, &Value::Null)
            .await
            .status
    };

    bao.seal().await;
    assert!(!try_rotation().await.is_success());
    web.get("orders", "/").await.is_ok();
    bao.unseal().await;
    until("certificates are signed again", async || {
        try_rotation().await.is_success()
    })
    .await;

    bao.kill9();
    assert!(!try_rotation().await.is_success());
    web.get("orders", "/").await.is_ok();
    bao.restart().await;
    until("certificates are signed again", async || {
        try_rotation().await.is_success()
    })
    .await;
    web.get("orders", "/").await.is_ok();
}

#[tokio::test]
async fn after_openbao_revokes_a_token_the_new_one_is_read_from_its_file() {
    let bao = OpenBao::start().await;
    let folder = folder::fresh();
    let (file, spec) = bao.prepare_for_merlon(folder.path()).await;
    let mesh = Mesh::new()
        .service("orders")
        .allow("web", "GET", "/**")
        .mesh(&spec)
        .start()
        .await;
    let old = std::fs::read_to_string(&file).unwrap();
    let found = bao
        .call(
            Method::POST,
            "auth/token/lookup",
            json!({ "token": old.trim() }),
        )
        .await;
    let policies = found.body["data"]["policies"].clone();
    let request = json!({ "policies": policies, "no_default_policy": true, "no_parent": true });
    let made = bao.call(Method::POST, "auth/token/create", request).await;
    bao.revoke(old.trim()).await;
    std::fs::write(&file, made.body["auth"]["client_token"].as_str().unwrap()).unwrap();
    let (before, after) = mesh.rotate("orders").await;
    assert_ne!(before, after);
}
