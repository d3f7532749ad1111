//! `merlon explain`: why a request was refused.

use http::StatusCode;
use merlon_tests::{Mesh, Reply, process::Output};

const POLICY: &str = r#"
@id("read-own")
permit(principal == Workload::"shop/web", action == Action::"GET", resource)
when { context.path like "/orders/*" };

@id("frozen")
@reason("Orders are frozen during the audit.")
forbid(principal, action in Action::"http", resource) when { context.path like "/orders/frozen*" };
"#;

async fn explain(mesh: &Mesh, reply: &Reply) -> Output {
    let ended = mesh.merlon(&["explain", reply.decision_id()]).await;
    assert_eq!(ended.code(), 0, "{ended:?}");
    ended
}

fn shows(ended: &Output, what: &str) {
    assert!(
        ended.out.contains(what),
        "no `{what}` in:\n{}\n{}",
        ended.out,
        ended.err
    );
}

#[tokio::test]
async fn an_explanation_of_a_refusal_shows_the_request_the_policies_and_the_one_that_decided() {
    let mesh = Mesh::new()
        .service("orders")
        .policy(POLICY)
        .caller("web")
        .start()
        .await;
    let refused = mesh
        .as_workload("web")
        .get("orders", "/orders/frozen-7")
        .await;
    refused.is_problem(StatusCode::FORBIDDEN, "authz.denied");

    let ended = explain(&mesh, &refused).await;
    shows(&ended, "denied");
    shows(&ended, "/orders/frozen-7");
    shows(&ended, "spiffe://mesh.test/ns/shop/sa/web");
    shows(&ended, "read-own");
    shows(&ended, "frozen");
}

#[tokio::test]
async fn a_denial_by_default_shows_the_closest_permit_and_the_condition_that_failed() {
    let mesh = Mesh::new()
        .service("orders")
        .policy(POLICY)
        .caller("web")
        .start()
        .await;
    let refused = mesh.as_workload("web").get("orders", "/elsewhere").await;
    refused.is_problem(StatusCode::FORBIDDEN, "authz.denied");
    let ended = explain(&mesh, &refused).await;
    shows(&ended, "read-own");
    shows(&ended, "/elsewhere");
}

#[tokio::test]
async fn after_a_policy_change_explain_shows_the_decision_then_and_the_decision_now() {
    let mesh = Mesh::new()
        .service("orders")
        .policy(POLICY)
        .caller("web")
        .start()
        .await;
    let web = mesh.as_workload("web");
    let refused = web.get("orders", "/orders/frozen-7").await;
    refused.is_problem(StatusCode::FORBIDDEN, "authz.denied");

    mesh.edit("orders-policy.yaml", "/orders/frozen*", "/orders/other*");
    merlon_tests::until("the new policy is live", async || {
        web.get("orders", "/orders/frozen-7").await.status == StatusCode::OK
    })
    .await;

    let ended = mesh
        .merlon(&["explain", refused.decision_id(), "--output", "json"])
        .await;
    assert_eq!(ended.code(), 0, "{ended:?}");
    let explained: serde_json::Value = serde_json::from_str(&ended.out).expect("JSON");
    assert_eq!(explained["then"]["allowed"], false, "{explained:#}");
    assert!(
        explained.to_string().contains("\"allowed\":true"),
        "today it is allowed: {explained:#}"
    );
}

#[tokio::test]
async fn an_unknown_decision_id_is_an_error() {
    let mesh = Mesh::new()
        .service("orders")
        .policy(POLICY)
        .caller("web")
        .start()
        .await;
    for id in ["00000000-0", "nonsense", "../../etc/passwd"] {
        let ended = mesh.merlon(&["explain", id]).await;
        assert_eq!(ended.code(), 1, "{ended:?}");
        assert!(ended.err.starts_with("error: "), "{ended:?}");
    }
}

#[tokio::test]
async fn an_unavailable_control_plane_is_an_error_with_a_hint() {
    let mesh = Mesh::new()
        .service("orders")
        .policy(POLICY)
        .caller("web")
        .start()
        .await;
    mesh.control_plane().kill9();
    let ended = mesh.merlon(&["proxy", "status"]).await;
    assert_eq!(ended.code(), 1, "{ended:?}");
    assert!(ended.err.contains("hint: "), "{ended:?}");
}

/// The explanation as JSON, as a script reads it.
async fn explain_json(mesh: &Mesh, id: &str) -> serde_json::Value {
    let ended = mesh.merlon(&["explain", id, "--output", "json"]).await;
    assert_eq!(ended.code(), 0, "{ended:?}");
    serde_json::from_str(&ended.out).expect("JSON")
}

const STRICT: &str = r"
routes:
  - path: /orders
    methods: [POST]
    contentTypes: [application/json]
    body: { type: object, properties: { quantity: { type: integer } } }
";

#[tokio::test]
async fn a_request_without_a_token_is_explained_as_denied_by_authentication_and_not_by_policy() {
    let mesh = Mesh::new()
        .service("orders")
        .allow("web", "http", "/**")
        .tokens_of("http://127.0.0.1:1")
        .start()
        .await;
    let refused = mesh.as_workload("web").get("orders", "/orders/7").await;
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
    let mesh = Mesh::new()
        .service("orders")
        .allow("web", "http", "/**")
        .tokens_of("http://127.0.0.1:1")
        .start()
        .await;
    let web = mesh.as_workload("web");
    let refused = web.get("orders", "/orders/7").token("e30.e30.c2ln").await;
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED, "{refused:?}");
    let line = mesh.log_of("orders", &refused).await;

    let ended = explain(&mesh, &refused).await;
    shows(&ended, "denied by authentication");
    shows(&ended, &line.text("cause"));
    assert!(!refused.text().contains(&line.text("cause")));
}

#[tokio::test]
async fn a_request_over_a_rate_limit_is_explained_with_the_name_of_the_limit() {
    let mesh = Mesh::new()
        .service("orders")
        .allow("web", "http", "/**")
        .with(
            "RateLimit",
            "limits:\n  - { name: few, per: principal, rate: { requests: 1, per: 1h } }\n",
        )
        .start()
        .await;
    let web = mesh.as_workload("web");
    web.get("orders", "/").await.is_ok();
    let refused = web.get("orders", "/").await;
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
    let mesh = Mesh::new()
        .service("orders")
        .allow("web", "http", "/**")
        .with("RequestValidation", STRICT)
        .start()
        .await;
    let web = mesh.as_workload("web");
    let body = serde_json::json!({ "quantity": "many" });
    let bad_body = web.post_json("orders", "/orders", &body).await;
    bad_body.is_problem(StatusCode::BAD_REQUEST, "validate.body");
    let bad_method = web.get("orders", "/orders").await;
    bad_method.is_problem(StatusCode::METHOD_NOT_ALLOWED, "http.method");
    let bad_type = web
        .post("orders", "/orders", "x")
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
    assert_eq!(mesh.requests_seen_by("orders"), 0);
}

#[tokio::test]
async fn a_refusal_by_the_callers_own_proxy_is_explained_too() {
    let mesh = Mesh::new()
        .service("orders")
        .allow("web", "http", "/**")
        .start()
        .await;
    let web = mesh.as_workload("web");
    let nowhere = web.get("nowhere", "/x").await;
    assert_ne!(nowhere.status, StatusCode::OK, "{nowhere:?}");
    let ended = explain(&mesh, &nowhere).await;
    shows(&ended, "GET /x to host nowhere.shop");
    let problem = nowhere.json();
    shows(&ended, problem["reason"].as_str().unwrap_or_default());
    shows(&ended, "outbound");

    let raw = web
        .raw(b"GET /x HTTP/1.1\r\nhost: orders.shop\r\nhost: other.shop\r\n\r\n")
        .await;
    let id = raw
        .lines()
        .find_map(|line| line.strip_prefix("merlon-decision-id: "))
        .unwrap_or_else(|| panic!("no decision id in {raw}"));
    let explained = explain_json(&mesh, id.trim()).await;
    assert_eq!(explained["allowed"], false, "{explained:#}");
    assert_eq!(explained["refusal"]["status"], 400, "{explained:#}");
    assert_eq!(mesh.requests_seen_by("orders"), 0);
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
    mesh.sidecar("orders").kill9();
    let gone = async || {
        let mut all = mesh.status().await.into_iter();
        all.find(|proxy| proxy["state"] == "disconnected")
    };
    merlon_tests::until("the proxy is disconnected", async || gone().await.is_some()).await;

    let status = gone().await.unwrap_or_default();
    assert!(status["snapshotAgeSeconds"].is_null(), "{status:#}");
    let listed = mesh.merlon(&["proxy", "status"]).await;
    shows(&listed, "s ago");
    let ended = mesh.merlon(&["explain", refused.decision_id()]).await;
    assert_eq!(ended.code(), 1, "{ended:?}");
    assert!(ended.err.contains("decisions are lost"), "{ended:?}");
}
