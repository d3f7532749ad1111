//! Authorization, and the content of refusals.

use http::{Method, StatusCode};
use merlon_tests::{
    Mesh,
    chat::Line,
    client::connect,
    mesh::{Guard, Shared, identity},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::Code;

static MESH: Shared = Shared::new();

/// `ledger`, which `web` may read; `batch`, which no policy names; every protocol.
async fn mesh() -> Guard {
    MESH.get(async || {
        Mesh::new()
            .service("ledger")
            .allow("web", "GET", "/entries/**")
            .policy(LEDGER)
            .with(
                "RequestValidation",
                "routes:\n  - path: /accounts/{account}/entries\n",
            )
            .grpc_service("chat")
            .allow_grpc("web")
            .tcp_service("echo")
            .allow_tcp("web")
            .outbound("batch", "echo")
            .service("bare")
            .caller("batch")
            .start()
            .await
    })
    .await
}

const LEDGER: &str = r#"
@id("write-own")
permit(principal == Workload::"shop/web", action in Action::"write", resource)
when { context has route && context.route == "/accounts/{account}/entries" && context.params has account
    && context.params.account == "web" };

@id("tenants")
permit(principal in Namespace::"shop", action == Action::"GET", resource)
when { context.path == "/tenant" && context.headers has "x-tenant" && context.headers["x-tenant"] == "blue" };

@id("never-secrets")
@reason("Secrets are never read.")
forbid(principal, action in Action::"http", resource) when { context.path like "/entries/secret*" };
"#;

#[tokio::test]
async fn a_request_with_a_permit_is_let_through_and_the_log_names_its_caller() {
    let mesh = mesh().await;
    let reply = mesh
        .as_workload("web")
        .get("ledger", "/entries/allowed")
        .await;
    reply.is_ok();
    assert_eq!(mesh.seen_at("ledger", "/entries/allowed").len(), 1);
    mesh.log_where("ledger", "path", "/entries/allowed")
        .await
        .has("src", &identity("web"))
        .has("status", "200")
        .has("method", "GET")
        .has("reason", "");
}

#[tokio::test]
async fn a_workload_without_a_permit_gets_403_and_the_upstream_sees_nothing() {
    let mesh = mesh().await;
    let reply = mesh
        .as_workload("batch")
        .get("ledger", "/entries/denied")
        .await;

    reply.is_problem(StatusCode::FORBIDDEN, "authz.denied");
    assert!(mesh.seen_at("ledger", "/entries/denied").is_empty());
    mesh.log_of("ledger", &reply)
        .await
        .has("status", "403")
        .has("reason", "authz.denied")
        .has("src", &identity("batch"))
        .has("path", "/entries/denied")
        .has_field("snapshot");
}

#[tokio::test]
async fn a_service_without_policies_refuses_every_caller() {
    let mesh = mesh().await;
    let reply = mesh.as_workload("web").get("bare", "/").await;
    reply.is_problem(StatusCode::FORBIDDEN, "authz.denied");
    assert_eq!(mesh.requests_seen_by("bare"), 0);
}

#[tokio::test]
async fn another_method_or_path_than_permitted_is_refused() {
    let mesh = mesh().await;
    let web = mesh.as_workload("web");
    web.call(Method::DELETE, "ledger", "/entries/1")
        .await
        .is_problem(StatusCode::FORBIDDEN, "authz.denied");
    web.get("ledger", "/elsewhere")
        .await
        .is_problem(StatusCode::FORBIDDEN, "authz.denied");
    // `/entries/**` does not match this path, although the prefix is the same.
    web.get("ledger", "/entriesx")
        .await
        .is_problem(StatusCode::FORBIDDEN, "authz.denied");
}

#[tokio::test]
async fn a_forbid_overrides_a_permit_and_a_workload_sees_its_name_and_reason() {
    let mesh = mesh().await;
    let reply = mesh
        .as_workload("web")
        .get("ledger", "/entries/secret-1")
        .await;
    reply.is_problem(StatusCode::FORBIDDEN, "authz.denied");
    let problem = reply.json();
    assert_eq!(problem["policy"], "shop/ledger-policy#never-secrets");
    assert_eq!(problem["detail"], "Secrets are never read.");
    mesh.log_of("ledger", &reply)
        .await
        .has("policy", "shop/ledger-policy#never-secrets");
    assert!(mesh.seen_at("ledger", "/entries/secret-1").is_empty());
}

#[tokio::test]
async fn policies_read_the_route_and_its_parameters() {
    let mesh = mesh().await;
    let web = mesh.as_workload("web");
    web.post("ledger", "/accounts/web/entries", "1")
        .await
        .is_ok();
    web.post("ledger", "/accounts/batch/entries", "1")
        .await
        .is_problem(StatusCode::FORBIDDEN, "authz.denied");
}

#[tokio::test]
async fn policies_read_headers_and_namespaces() {
    let mesh = mesh().await;
    for workload in ["web", "batch"] {
        let client = mesh.as_workload(workload);
        client
            .get("ledger", "/tenant")
            .header("x-tenant", "blue")
            .await
            .is_ok();
        client
            .get("ledger", "/tenant")
            .header("x-tenant", "red")
            .await
            .is_problem(StatusCode::FORBIDDEN, "authz.denied");
    }
}

#[tokio::test]
async fn the_policy_and_the_program_see_the_same_path() {
    let mesh = mesh().await;
    let web = mesh.as_workload("web");
    // Targets that look permitted and normalize to another path.
    for target in [
        "/entries/../elsewhere",
        "/entries/%2e%2e/elsewhere",
        "/entries/./../elsewhere",
        "//elsewhere",
    ] {
        web.get("ledger", target)
            .await
            .is_problem(StatusCode::FORBIDDEN, "authz.denied");
    }
    // A forbidden path in another spelling.
    web.get("ledger", "/entries/%73ecret-1")
        .await
        .is_problem(StatusCode::FORBIDDEN, "authz.denied");
    // A permitted path in another spelling arrives normalized.
    let reply = web
        .get("ledger", "/elsewhere/..//entries/%6eormal?q=%6e")
        .await;
    assert_eq!(reply.is_ok().json()["target"], "/entries/normal?q=%6e");
    // An ambiguous path is refused before any policy is evaluated.
    for target in [
        "/entries/%2fetc",
        "/entries/%5c..",
        "/entries/%00",
        "/entries/%zz",
        "/../entries",
        "/entries/..;x/y",
    ] {
        web.get("ledger", target)
            .await
            .is_problem(StatusCode::BAD_REQUEST, "http.path");
    }
}

#[tokio::test]
async fn a_refused_grpc_call_is_permission_denied_and_the_program_sees_nothing() {
    let mesh = mesh().await;
    let mut chat = mesh.as_workload("batch").chat("chat").await;
    let refused = chat.say(Line::new("hello", 1)).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().starts_with("authz.denied"), "{refused:?}");
    let id = refused
        .metadata()
        .get("merlon-decision-id")
        .expect("a decision id")
        .to_str()
        .unwrap();
    mesh.log_where("chat", "decision_id", id)
        .await
        .has("reason", "authz.denied");
    assert!(
        !mesh
            .seen_by("chat")
            .iter()
            .any(|seen| seen.target.ends_with("/Say"))
    );

    mesh.as_workload("web")
        .chat("chat")
        .await
        .count(Line::new("hello", 1))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_refused_tcp_connection_is_closed_before_a_byte_reaches_the_program() {
    let mesh = mesh().await;
    let mut stream = connect(mesh.outbound("batch", "echo")).await;
    // The proxy may close the connection before this is written.
    let _ = stream.write_all(b"hello").await;
    let mut back = Vec::new();
    let _ = stream.read_to_end(&mut back).await;
    assert!(back.is_empty(), "{back:?}");
    mesh.log_where("echo", "src", &identity("batch"))
        .await
        .has("reason", "authz.denied");
    assert_eq!(mesh.requests_seen_by("echo"), 0);
}

#[tokio::test]
async fn a_web_socket_is_refused_before_the_upgrade() {
    let mesh = mesh().await;
    let refused = mesh
        .as_workload("batch")
        .web_socket("ledger", "/entries/socket")
        .await
        .unwrap_err();
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    assert_eq!(
        refused.headers()["content-type"],
        "application/problem+json"
    );
    assert!(mesh.seen_at("ledger", "/entries/socket").is_empty());
}

#[tokio::test]
async fn the_root_namespaces_forbid_overrides_every_permit_of_a_namespace() {
    let guard = r#"
apiVersion: merlon.io/v1alpha1
kind: AuthorizationPolicy
metadata: { name: baseline, namespace: merlon-system }
spec:
  targetRefs: [{ kind: Mesh }]
  policies: |
    @id("read-only")
    @reason("The mesh is frozen.")
    forbid(principal, action in Action::"write", resource);
"#;
    let mesh = Mesh::new()
        .service("ledger")
        .allow("web", "http", "/**")
        .file("baseline.yaml", guard)
        .start()
        .await;
    let web = mesh.as_workload("web");
    web.get("ledger", "/read").await.is_ok();
    let reply = web.post("ledger", "/write", "1").await;
    reply.is_problem(StatusCode::FORBIDDEN, "authz.denied");
    mesh.log_of("ledger", &reply)
        .await
        .has("policy", "merlon-system/baseline#read-only");
    assert!(mesh.seen_at("ledger", "/write").is_empty());
}

#[tokio::test]
async fn the_log_of_a_refusal_contains_no_secrets() {
    let mesh = mesh().await;
    let reply = mesh
        .as_workload("batch")
        .get("ledger", "/entries/hush?key=swordfish")
        .header("authorization", "Bearer swordfish")
        .header("cookie", "session=swordfish")
        .await;
    reply.is_problem(StatusCode::FORBIDDEN, "authz.denied");
    mesh.log_of("ledger", &reply)
        .await
        .does_not_contain("swordfish");
    mesh.log_where("batch", "path", "/entries/hush")
        .await
        .does_not_contain("swordfish");
}
