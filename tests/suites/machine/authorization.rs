//! Authorization, and the content of refusals.

use http::{Method, StatusCode};
use merlon_tests::{
    Mesh,
    chat::Line,
    client::connect,
    mesh::{Guard, Shared, identity},
    refusals::Refusals,
    wait::limit,
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
    let calls = ["web", "batch"].map(|workload| {
        let call = mesh.as_workload(workload).get("bare", "/");
        (workload, call, 403, "authz.denied")
    });
    mesh.refuses("bare", calls).await;
}

#[tokio::test]
async fn another_method_or_path_than_permitted_is_refused() {
    let mesh = mesh().await;
    let web = mesh.as_workload("web");
    let delete = web.call(Method::DELETE, "ledger", "/entries/1");
    // `/entries/**` does not match this path, although the prefix is the same.
    let longer = web.get("ledger", "/entriesx");
    mesh.refuses(
        "ledger",
        [
            ("DELETE", delete, 403, "authz.denied"),
            (
                "elsewhere",
                web.get("ledger", "/elsewhere"),
                403,
                "authz.denied",
            ),
            ("a longer name", longer, 403, "authz.denied"),
        ],
    )
    .await;
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
    let other = web.post("ledger", "/accounts/batch/entries", "1");
    mesh.refuses("ledger", [("another account", other, 403, "authz.denied")])
        .await;
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
        let red = client.get("ledger", "/tenant").header("x-tenant", "red");
        mesh.refuses("ledger", [(workload, red, 403, "authz.denied")])
            .await;
    }
}

#[tokio::test]
async fn the_policy_and_the_program_see_the_same_path() {
    let mesh = mesh().await;
    let web = mesh.as_workload("web");
    let rows = |targets: &[&'static str], status, reason: &'static str| {
        let row = |target: &&'static str| (*target, web.get("ledger", target), status, reason);
        targets.iter().map(row).collect::<Vec<_>>()
    };
    // Targets that look permitted and normalize to another path.
    let denied = rows(
        &[
            "/entries/../elsewhere",
            "/entries/%2e%2e/elsewhere",
            "/entries/./../elsewhere",
            "//elsewhere",
            // A forbidden path in another spelling.
            "/entries/%73ecret-1",
        ],
        403,
        "authz.denied",
    );
    mesh.refuses("ledger", denied).await;
    // A permitted path in another spelling arrives normalized.
    let reply = web
        .get("ledger", "/elsewhere/..//entries/%6eormal?q=%6e")
        .await;
    assert_eq!(reply.is_ok().json()["target"], "/entries/normal?q=%6e");
    // An ambiguous path is refused before any policy is evaluated: by the caller's own proxy.
    let ambiguous = rows(
        &[
            "/entries/%2fetc",
            "/entries/%5c..",
            "/entries/%00",
            "/entries/%zz",
            "/../entries",
            "/entries/..;x/y",
        ],
        400,
        "http.path",
    );
    Refusals::by(mesh.sidecar("web"), mesh.app("ledger"))
        .each(ambiguous)
        .await;
}

#[tokio::test]
async fn a_refused_grpc_call_is_permission_denied_and_the_program_sees_nothing() {
    let mesh = mesh().await;
    let mut request = tonic::Request::new(Line::new("hello", 1));
    request
        .metadata_mut()
        .insert("x-test", "refused".parse().unwrap());
    let mut chat = mesh.as_workload("batch").chat("chat").await;
    let refused = chat.say(request).await.unwrap_err();
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
    let seen = mesh.seen_by("chat");
    assert!(!seen.iter().any(|seen| seen.headers.contains_key("x-test")));

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
    let mut back = Vec::new();
    limit("the proxy to close the connection", async {
        // The proxy may close the connection before this is written.
        let _ = stream.write_all(b"hello").await;
        let _ = stream.read_to_end(&mut back).await;
    })
    .await;
    assert!(back.is_empty(), "{back:?}");
    mesh.log_where("echo", "src", &identity("batch"))
        .await
        .has("reason", "authz.denied");
    assert_eq!(mesh.requests_seen_by("echo"), 0);

    // The same bytes of a permitted workload arrive. No other test uses this service.
    let mut stream = connect(mesh.outbound("web", "echo")).await;
    stream.write_all(b"hello").await.unwrap();
    let mut back = [0; 5];
    limit("the echo", stream.read_exact(&mut back))
        .await
        .unwrap();
    assert_eq!((&back, mesh.requests_seen_by("echo")), (b"hello", 1));
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
    let id = refused.headers()["merlon-decision-id"].to_str().unwrap();
    mesh.log_where("ledger", "decision_id", id)
        .await
        .has("reason", "authz.denied")
        .has("status", "403");
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
