//! Why was this refused: `merlon explain`.

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

async fn explained(mesh: &Mesh, reply: &Reply) -> Output {
    let ended = mesh.merlon(&["explain", reply.decision_id()]).await;
    assert_eq!(ended.code(), 0, "{ended:?}");
    ended
}

fn says(ended: &Output, what: &str) {
    assert!(
        ended.out.contains(what),
        "no `{what}` in:\n{}\n{}",
        ended.out,
        ended.err
    );
}

#[tokio::test]
async fn a_refusal_is_explained_with_its_facts_the_policies_and_the_one_that_decided() {
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

    let ended = explained(&mesh, &refused).await;
    says(&ended, "denied");
    says(&ended, "/orders/frozen-7");
    says(&ended, "spiffe://mesh.test/ns/shop/sa/web");
    says(&ended, "read-own");
    says(&ended, "frozen");
}

#[tokio::test]
async fn a_refusal_by_default_says_which_permit_came_near_and_what_did_not_hold() {
    let mesh = Mesh::new()
        .service("orders")
        .policy(POLICY)
        .caller("web")
        .start()
        .await;
    let refused = mesh.as_workload("web").get("orders", "/elsewhere").await;
    refused.is_problem(StatusCode::FORBIDDEN, "authz.denied");
    let ended = explained(&mesh, &refused).await;
    says(&ended, "read-own");
    says(&ended, "/elsewhere");
}

#[tokio::test]
async fn after_the_policy_has_changed_it_says_what_was_and_what_today_would_be() {
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
async fn a_decision_that_nobody_remembers_is_said_to_be_so() {
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
async fn a_control_plane_that_is_away_is_said_to_be_away() {
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

/// What a script reads of an explanation.
async fn told(mesh: &Mesh, id: &str) -> serde_json::Value {
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
async fn a_request_without_a_token_was_denied_by_authentication_and_not_by_policy() {
    let mesh = Mesh::new()
        .service("orders")
        .allow("web", "http", "/**")
        .tokens_of("http://127.0.0.1:1")
        .start()
        .await;
    let refused = mesh.as_workload("web").get("orders", "/orders/7").await;
    refused.is_problem(StatusCode::UNAUTHORIZED, "authn.missing");

    let ended = explained(&mesh, &refused).await;
    says(
        &ended,
        "denied by authentication, before policies were evaluated",
    );
    says(&ended, "401 authn.missing: a bearer token is required");
    says(&ended, "Authorization: Bearer");
    assert!(!ended.out.contains("Decided"), "{}", ended.out);

    let told = told(&mesh, refused.decision_id()).await;
    assert_eq!(told["allowed"], false, "{told:#}");
    assert_eq!(told["decidedBy"], "check");
    assert_eq!(told["refusal"]["reason"], "authn.missing");
    assert!(told["then"].is_null(), "policies were not asked: {told:#}");
}

#[tokio::test]
async fn a_token_that_will_not_do_is_explained_with_the_cause_that_its_caller_is_not_told() {
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

    let ended = explained(&mesh, &refused).await;
    says(&ended, "denied by authentication");
    says(&ended, &line.text("cause"));
    assert!(!refused.text().contains(&line.text("cause")));
}

#[tokio::test]
async fn a_spent_limit_was_denied_by_the_limit_and_says_when_to_come_back() {
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

    let ended = explained(&mesh, &refused).await;
    says(
        &ended,
        "denied by a rate limit, before policies were evaluated",
    );
    says(&ended, "the limit `few` is spent");
}

#[tokio::test]
async fn what_validation_refuses_was_permitted_by_policy_and_says_where_it_is_wrong() {
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

    let ended = explained(&mesh, &bad_body).await;
    says(
        &ended,
        "denied by request validation, after policies permitted it",
    );
    says(&ended, "/quantity");
    for refused in [&bad_body, &bad_method, &bad_type] {
        let told = told(&mesh, refused.decision_id()).await;
        assert_eq!(told["allowed"], false, "{told:#}");
        assert_eq!(told["decidedBy"], "check", "{told:#}");
        assert_eq!(told["then"]["allowed"], true, "{told:#}");
    }
    assert_eq!(mesh.requests_seen_by("orders"), 0);
}

#[tokio::test]
async fn what_never_left_the_callers_side_is_explained_too() {
    let mesh = Mesh::new()
        .service("orders")
        .allow("web", "http", "/**")
        .start()
        .await;
    let web = mesh.as_workload("web");
    let nowhere = web.get("nowhere", "/x").await;
    assert_ne!(nowhere.status, StatusCode::OK, "{nowhere:?}");
    let ended = explained(&mesh, &nowhere).await;
    says(&ended, "GET /x to host nowhere.shop");
    let problem = nowhere.json();
    says(&ended, problem["reason"].as_str().unwrap_or_default());
    says(&ended, "outbound");

    let raw = web
        .raw(b"GET /x HTTP/1.1\r\nhost: orders.shop\r\nhost: other.shop\r\n\r\n")
        .await;
    let id = raw
        .lines()
        .find_map(|line| line.strip_prefix("merlon-decision-id: "))
        .unwrap_or_else(|| panic!("no decision id in {raw}"));
    let told = told(&mesh, id.trim()).await;
    assert_eq!(told["allowed"], false, "{told:#}");
    assert_eq!(told["refusal"]["status"], 400, "{told:#}");
    assert_eq!(mesh.requests_seen_by("orders"), 0);
}

#[tokio::test]
async fn a_proxy_that_died_took_its_decisions_with_it_and_nobody_says_otherwise() {
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
    merlon_tests::until("it is known to be gone", async || gone().await.is_some()).await;

    let status = gone().await.unwrap_or_default();
    assert!(status["snapshotAgeSeconds"].is_null(), "{status:#}");
    let listed = mesh.merlon(&["proxy", "status"]).await;
    says(&listed, "s ago");
    let ended = mesh.merlon(&["explain", refused.decision_id()]).await;
    assert_eq!(ended.code(), 1, "{ended:?}");
    assert!(ended.err.contains("decisions are lost"), "{ended:?}");
}
