//! Workload identity: join tokens and certificate requests.

mod openbao;
mod proxies;

use http::{Method, StatusCode};
use merlon_certs::PrivateKey;
use merlon_tests::{
    Mesh,
    mesh::{Guard, Shared, Sidecar, identity, spiffe_id},
    until,
    wait::limit,
};
use serde_json::json;
use tonic::{Code, Status};

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

/// Asserts that the control plane answers with this code, and that its message contains `says`.
#[track_caller]
fn is(status: &Status, code: Code, says: &str) {
    assert_eq!(status.code(), code, "{status:?}");
    assert!(status.message().contains(says), "`{says}` in {status:?}");
}

#[tokio::test]
async fn a_join_token_is_valid_for_one_certificate_of_its_own_identity() {
    let mesh = mesh().await;
    let token = mesh.control_plane().join_token("batch").await;
    let client = mesh.anonymous_peer(&token);

    let refused = client
        .issue(csr_for("web"), Some(&token))
        .await
        .unwrap_err();
    is(&refused, Code::InvalidArgument, &identity("batch"));

    // The refused request has not used up the token.
    client.issue(csr_for("batch"), Some(&token)).await.unwrap();
    let again = client
        .issue(csr_for("batch"), Some(&token))
        .await
        .unwrap_err();
    is(&again, Code::PermissionDenied, "used");
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
    for (invented, code, says) in [
        (parts.join("."), Code::PermissionDenied, "not known"),
        (
            "merlon-join.1.mesh.test".to_owned(),
            Code::InvalidArgument,
            "join token",
        ),
        (String::new(), Code::InvalidArgument, "join token"),
        ("x".repeat(10_000), Code::InvalidArgument, "join token"),
        ("x".repeat(100_000), Code::OutOfRange, "65536 bytes"),
    ] {
        let refused = client
            .issue(csr_for("batch"), Some(&invented))
            .await
            .unwrap_err();
        is(&refused, code, says);
    }
    // The real one is still valid.
    client.issue(csr_for("batch"), Some(&token)).await.unwrap();
}

#[tokio::test]
async fn no_join_token_is_made_for_an_identity_outside_the_mesh() {
    let mesh = mesh().await;
    for (wrong, status) in [
        ("spiffe://other.test/ns/shop/sa/web", StatusCode::NOT_FOUND),
        ("spiffe://mesh.test/ns/shop", StatusCode::BAD_REQUEST),
        ("nonsense", StatusCode::BAD_REQUEST),
        ("", StatusCode::BAD_REQUEST),
    ] {
        let request = json!({ "identity": wrong });
        let reply = mesh
            .control_plane()
            .call(Method::POST, "/v1/join-tokens", &request)
            .await;
        assert_eq!(reply.status, status, "{wrong}: {reply:?}");
        assert!(!reply.text().contains("merlon-join"), "{wrong}: {reply:?}");
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
    is(&refused, Code::Unauthenticated, "no evidence");
}

#[tokio::test]
async fn a_certificate_renews_its_own_identity_and_no_other() {
    let mesh = mesh().await;
    let peer = mesh.test_peer("batch").await;
    let renewed = peer.issue(csr_for("batch"), None).await.unwrap();
    assert!(!renewed.chain.is_empty());
    let refused = peer.issue(csr_for("web"), None).await.unwrap_err();
    is(&refused, Code::InvalidArgument, &identity("batch"));
}

#[tokio::test]
async fn an_invalid_certificate_request_is_refused() {
    let mesh = mesh().await;
    let peer = mesh.test_peer("batch").await;
    let mut broken = csr_for("batch");
    // Its last bytes are the signature.
    *broken.last_mut().unwrap() ^= 1;
    let invalid = Code::InvalidArgument;
    for (csr, code, says) in [
        (Vec::new(), invalid, "1 to 4096 bytes"),
        (vec![0x30; 4_097], invalid, "1 to 4096 bytes"),
        (vec![0x30; 100_000], Code::OutOfRange, "65536 bytes"),
        (b"not DER".to_vec(), invalid, "DER"),
        (broken, invalid, "not signed by its own key"),
    ] {
        let refused = peer.issue(csr, None).await.unwrap_err();
        is(&refused, code, says);
    }
}

#[tokio::test]
async fn a_workload_that_requests_too_many_certificates_is_refused_and_others_are_not() {
    let mesh = mesh().await;
    let greedy = mesh.test_peer("payments").await;
    // A burst of 100 is allowed, and 5 per second. The limit comes before any look at the request.
    let mut refusals = (0..1_000).map(|_| greedy.issue(Vec::new(), None));
    let limited = limit("a refusal by the limit", async {
        loop {
            let refused = refusals.next().expect("no limit").await.unwrap_err();
            if refused.code() != Code::InvalidArgument {
                return refused;
            }
        }
    })
    .await;
    is(
        &limited,
        Code::ResourceExhausted,
        "too many certificate requests",
    );
    let other = mesh.test_peer("batch").await;
    other.issue(csr_for("batch"), None).await.unwrap();
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
    is(&again, Code::PermissionDenied, "used");
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
