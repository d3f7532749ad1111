//! `merlon explain`: why a request was refused.

use http::StatusCode;
use merlon_tests::{
    Mesh, Reply,
    mesh::{Guard, Shared, identity},
    process::Output,
    until,
    wait::until_some,
};

const POLICY: &str = r#"
@id("read-own")
permit(principal == Workload::"shop/web", action == Action::"GET", resource)
when { context.path like "/orders/*" };

@id("frozen")
@reason("Orders are frozen during the audit.")
forbid(principal, action in Action::"http", resource) when { context.path like "/orders/frozen*" };
"#;

const STRICT: &str = r"
routes:
  - path: /orders
    methods: [POST]
    contentTypes: [application/json]
    body: { type: object, properties: { quantity: { type: integer } } }
";

static MESH: Shared = Shared::new();

/// A service for each kind of refusal. Tests use different services, or different paths of one.
async fn mesh() -> Guard {
    MESH.get(async || {
        Mesh::new()
            .service("orders")
            .policy(POLICY)
            .service("changing")
            .policy(POLICY)
            .service("private")
            .allow("web", "http", "/**")
            .tokens_of("http://127.0.0.1:1")
            .service("limited")
            .allow("web", "http", "/**")
            .with(
                "RateLimit",
                "limits:\n  - { name: few, per: principal, rate: { requests: 1, per: 1h } }\n",
            )
            .service("strict")
            .allow("web", "http", "/**")
            .with("RequestValidation", STRICT)
            .mesh("  outbound: deny\n")
            .start()
            .await
    })
    .await
}

async fn explain(mesh: &Mesh, reply: &Reply) -> Output {
    let ended = mesh.merlon(&["explain", reply.decision_id()]).await;
    assert_eq!(ended.code(), 0, "{ended:?}");
    ended
}

/// The explanation as JSON, as a script reads it.
async fn explain_json(mesh: &Mesh, id: &str) -> serde_json::Value {
    let ended = mesh.merlon(&["explain", id, "--output", "json"]).await;
    assert_eq!(ended.code(), 0, "{ended:?}");
    serde_json::from_str(&ended.out).expect("JSON")
}

fn shows(ended: &Output, what: &str) {
    assert!(
        ended.out.contains(what),
        "no `{what}` in:\n{}\n{}",
        ended.out,
        ended.err
    );
}

/// The line of the explanation about the policy `id`.
fn line_of<'a>(ended: &'a Output, id: &str) -> &'a str {
    let mut lines = ended.out.lines().filter(|line| line.contains(id));
    lines
        .next()
        .unwrap_or_else(|| panic!("no line of `{id}` in:\n{}", ended.out))
}

#[tokio::test]
async fn an_explanation_of_a_refusal_shows_the_request_the_policies_and_the_one_that_decided() {
    let mesh = mesh().await;
    let refused = mesh
        .as_workload("web")
        .get("orders", "/orders/frozen-7")
        .await;
    refused.is_problem(StatusCode::FORBIDDEN, "authz.denied");

    let ended = explain(&mesh, &refused).await;
    shows(&ended, "denied by policy");
    shows(&ended, "/orders/frozen-7");
    shows(&ended, "spiffe://mesh.test/ns/shop/sa/web");
    shows(&ended, "read-own");
    let explained = explain_json(&mesh, refused.decision_id()).await;
    assert_eq!(explained["allowed"], false, "{explained:#}");
    let decided = explained["then"]["determining"].to_string();
    assert!(
        decided.contains("frozen") && !decided.contains("read-own"),
        "{explained:#}"
    );
}

#[tokio::test]
async fn a_denial_by_default_shows_the_closest_permit_and_the_condition_that_failed() {
    let mesh = mesh().await;
    let refused = mesh.as_workload("web").get("orders", "/elsewhere").await;
    refused.is_problem(StatusCode::FORBIDDEN, "authz.denied");
    let ended = explain(&mesh, &refused).await;
    shows(&ended, "no policy permits it");
    let closest = line_of(&ended, "read-own");
    for part in [
        "context.path like \"/orders/*\"",
        "context.path is \"/elsewhere\"",
    ] {
        assert!(closest.contains(part), "no `{part}` in: {closest}");
    }
}

#[tokio::test]
async fn after_a_policy_change_explain_shows_the_decision_then_and_the_decision_now() {
    let mesh = mesh().await;
    let web = mesh.as_workload("web");
    let refused = web.get("changing", "/orders/frozen-7").await;
    refused.is_problem(StatusCode::FORBIDDEN, "authz.denied");
    let explained = explain_json(&mesh, refused.decision_id()).await;
    assert_eq!(explained["then"]["allowed"], false, "{explained:#}");
    assert_eq!(explained["today"]["allowed"], false, "{explained:#}");
    assert_eq!(explained["policiesChanged"], false, "{explained:#}");

    mesh.edit("changing-policy.yaml", "/orders/frozen*", "/orders/other*");
    until("the new policy is live", async || {
        web.get("changing", "/orders/frozen-7").await.status == StatusCode::OK
    })
    .await;

    let explained = explain_json(&mesh, refused.decision_id()).await;
    assert_eq!(explained["then"]["allowed"], false, "{explained:#}");
    assert_eq!(explained["today"]["allowed"], true, "{explained:#}");
    assert_eq!(explained["policiesChanged"], true, "{explained:#}");
}

#[tokio::test]
async fn an_unknown_decision_id_is_an_error() {
    let mesh = mesh().await;
    for (id, error) in [
        ("00000000-0", "no known proxy has decisions that begin with"),
        ("nonsense", "`nonsense` is not a decision id"),
        (
            "../../etc/passwd",
            "`../../etc/passwd` is not a decision id",
        ),
    ] {
        let ended = mesh.merlon(&["explain", id]).await;
        assert_eq!(ended.code(), 1, "{ended:?}");
        assert!(ended.err.starts_with("error: "), "{ended:?}");
        assert!(ended.err.contains(error), "{ended:?}");
    }
}

#[tokio::test]
async fn an_unavailable_control_plane_is_an_error_with_a_hint() {
    let mesh = Mesh::new().caller("web").prepare().await;
    mesh.control_plane().start().await;
    let ended = mesh.merlon(&["proxy", "status"]).await;
    assert_eq!(ended.code(), 0, "{ended:?}");
    mesh.control_plane().kill9();
    for command in [["proxy", "status"], ["explain", "00000000-0"]] {
        let ended = mesh.merlon(&command).await;
        assert_eq!(ended.code(), 1, "{ended:?}");
        assert!(ended.err.starts_with("error: "), "{ended:?}");
        assert!(ended.err.contains("hint: "), "{ended:?}");
    }
}

#[tokio::test]
async fn a_request_without_a_token_is_explained_as_denied_by_authentication_and_not_by_policy() {
    let mesh = mesh().await;
    let refused = mesh.as_workload("web").get("private", "/orders/7").await;
    refused.is_problem(StatusCode::UNAUTHORIZED, "authn.missing");

    let ended = explain(&mesh, &refused).await;
    shows(
        &ended,
        "denied by authentication, before policies were evaluated",
    );
    shows(&ended, "401 authn.missing: a bearer token is required");
    shows(&ended, "Authorization: Bearer");
    assert!(!ended.out.contains("Decided"), "{}", ended.out);

    let explained = explain_json(&mesh, refused.decision_id()).await;
    assert_eq!(explained["allowed"], false, "{explained:#}");
    assert_eq!(explained["decidedBy"], "check");
    assert_eq!(explained["refusal"]["reason"], "authn.missing");
    assert!(
        explained["then"].is_null(),
        "no policy was evaluated: {explained:#}"
    );
}

#[tokio::test]
async fn an_invalid_token_is_explained_with_the_cause_that_its_caller_does_not_see() {
    let mesh = mesh().await;
    let web = mesh.as_workload("web");
    let refused = web.get("private", "/orders/7").token("e30.e30.c2ln").await;
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED, "{refused:?}");
    let line = mesh.log_of("private", &refused).await;

    let ended = explain(&mesh, &refused).await;
    shows(&ended, "denied by authentication");
    shows(&ended, &line.text("cause"));
    assert!(!refused.text().contains(&line.text("cause")));
}

#[tokio::test]
async fn a_request_over_a_rate_limit_is_explained_with_the_name_of_the_limit() {
    let mesh = mesh().await;
    let web = mesh.as_workload("web");
    web.get("limited", "/").await.is_ok();
    let refused = web.get("limited", "/").await;
    refused.is_problem(StatusCode::TOO_MANY_REQUESTS, "rate.limited");

    let ended = explain(&mesh, &refused).await;
    shows(
        &ended,
        "denied by a rate limit, before policies were evaluated",
    );
    shows(&ended, "the rate limit `few` is exceeded");
}

#[tokio::test]
async fn a_request_that_validation_refuses_is_explained_as_permitted_by_policy_with_the_invalid_place()
 {
    let mesh = mesh().await;
    let web = mesh.as_workload("web");
    let body = serde_json::json!({ "quantity": "many" });
    let bad_body = web.post_json("strict", "/orders", &body).await;
    bad_body.is_problem(StatusCode::BAD_REQUEST, "validate.body");
    let bad_method = web.get("strict", "/orders").await;
    bad_method.is_problem(StatusCode::METHOD_NOT_ALLOWED, "http.method");
    let bad_type = web
        .post("strict", "/orders", "x")
        .header("content-type", "text/plain")
        .await;
    bad_type.is_problem(StatusCode::UNSUPPORTED_MEDIA_TYPE, "http.media_type");

    let ended = explain(&mesh, &bad_body).await;
    shows(
        &ended,
        "denied by request validation, after policies permitted it",
    );
    shows(&ended, "/quantity");
    for refused in [&bad_body, &bad_method, &bad_type] {
        let explained = explain_json(&mesh, refused.decision_id()).await;
        assert_eq!(explained["allowed"], false, "{explained:#}");
        assert_eq!(explained["decidedBy"], "check", "{explained:#}");
        assert_eq!(explained["then"]["allowed"], true, "{explained:#}");
    }
    assert_eq!(mesh.requests_seen_by("strict"), 0);
}

#[tokio::test]
async fn a_refusal_by_the_callers_own_proxy_is_explained_too() {
    let mesh = mesh().await;
    let web = mesh.as_workload("web");
    let nowhere = web.get("nowhere", "/x").await;
    nowhere.is_problem(StatusCode::FORBIDDEN, "egress.denied");
    let ended = explain(&mesh, &nowhere).await;
    shows(&ended, "denied by the egress rule of the mesh");
    shows(&ended, "GET /x to host nowhere.shop");
    shows(&ended, "403 egress.denied");
    shows(&ended, "outbound");

    let raw = web
        .raw(b"GET /two-hosts HTTP/1.1\r\nhost: orders.shop\r\nhost: other.shop\r\n\r\n")
        .await;
    let id = raw
        .lines()
        .find_map(|line| line.strip_prefix("merlon-decision-id: "))
        .unwrap_or_else(|| panic!("no decision id in {raw}"));
    let explained = explain_json(&mesh, id.trim()).await;
    assert_eq!(explained["allowed"], false, "{explained:#}");
    assert_eq!(explained["refusal"]["status"], 400, "{explained:#}");
    assert!(mesh.seen_at("orders", "/two-hosts").is_empty());
}

#[tokio::test]
async fn the_decisions_of_a_proxy_that_died_are_reported_as_lost() {
    let mesh = Mesh::new()
        .service("orders")
        .policy(POLICY)
        .caller("web")
        .start()
        .await;
    let refused = mesh.as_workload("web").get("orders", "/elsewhere").await;
    refused.is_problem(StatusCode::FORBIDDEN, "authz.denied");
    let id = mesh.proxy_id("orders").await;
    mesh.sidecar("orders").kill9();
    let status = until_some("the proxy is disconnected", async || {
        let mut all = mesh.status().await.into_iter();
        all.find(|proxy| proxy["id"] == id.as_str() && proxy["state"] == "disconnected")
    })
    .await;
    assert_eq!(status["identity"], identity("orders"), "{status:#}");
    assert!(status["snapshotAgeSeconds"].is_null(), "{status:#}");
    let listed = mesh.merlon(&["proxy", "status"]).await;
    let line = line_of(&listed, &identity("orders"));
    assert!(line.contains("s ago"), "{line}");
    let ended = mesh.merlon(&["explain", refused.decision_id()]).await;
    assert_eq!(ended.code(), 1, "{ended:?}");
    assert!(ended.err.contains("decisions are lost"), "{ended:?}");
}
