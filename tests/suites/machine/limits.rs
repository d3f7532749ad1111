//! Rate limits.

use http::StatusCode;
use merlon_tests::{Mesh, Reply, chat::Line, openid::OpenIdProvider};
use tonic::Code;

fn limit(per: &str, requests: u32) -> String {
    // So slow that nothing refills while the test runs.
    format!(
        "limits:\n  - name: test\n    per: {per}\n    rate: {{ requests: {requests}, per: 1h }}\n"
    )
}

fn is_limited(reply: &Reply) {
    reply.is_problem(StatusCode::TOO_MANY_REQUESTS, "rate.limited");
    let seconds: u64 = reply
        .header("retry-after")
        .parse()
        .expect("seconds in Retry-After");
    assert!((1..=3_600).contains(&seconds), "{reply:?}");
}

#[tokio::test]
async fn each_principal_has_a_limit_of_its_own_and_over_it_gets_429_with_retry_after() {
    let mesh = Mesh::new()
        .service("orders")
        .allow("web", "GET", "/**")
        .allow("batch", "GET", "/**")
        .with("RateLimit", &limit("principal", 3))
        .start()
        .await;
    let web = mesh.as_workload("web");
    for _ in 0..3 {
        web.get("orders", "/").await.is_ok();
    }
    let refused = web.get("orders", "/").await;
    is_limited(&refused);
    mesh.log_of("orders", &refused)
        .await
        .has("reason", "rate.limited")
        .has("status", "429");
    assert_eq!(mesh.requests_seen_by("orders"), 3);

    mesh.as_workload("batch").get("orders", "/").await.is_ok();
}

#[tokio::test]
async fn an_address_has_one_limit_for_all_its_callers() {
    let mesh = Mesh::new()
        .service("orders")
        .allow("web", "GET", "/**")
        .allow("batch", "GET", "/**")
        .with("RateLimit", &limit("address", 2))
        .start()
        .await;
    mesh.as_workload("web").get("orders", "/").await.is_ok();
    mesh.as_workload("batch").get("orders", "/").await.is_ok();
    is_limited(&mesh.as_workload("web").get("orders", "/").await);
    is_limited(&mesh.as_workload("batch").get("orders", "/").await);
    assert_eq!(mesh.requests_seen_by("orders"), 2);
}

#[tokio::test]
async fn each_user_has_a_limit_of_its_own_behind_one_workload() {
    let provider = OpenIdProvider::new().await;
    let mesh = Mesh::new()
        .service("orders")
        .allow("web", "GET", "/**")
        .tokens_of(&provider.issuer())
        .with("RateLimit", &limit("user", 1))
        .start()
        .await;
    let web = mesh.as_workload("web");
    let (alice, bob) = (
        provider.token_of("alice").await,
        provider.token_of("bob").await,
    );
    web.get("orders", "/").token(&alice).await.is_ok();
    is_limited(&web.get("orders", "/").token(&alice).await);
    // Another token of the same user counts against the same limit.
    is_limited(
        &web.get("orders", "/")
            .token(&provider.token_of("alice").await)
            .await,
    );
    web.get("orders", "/").token(&bob).await.is_ok();
    assert_eq!(mesh.requests_seen_by("orders"), 2);
}

#[tokio::test]
async fn all_limits_must_pass_and_a_burst_may_be_larger_than_the_rate() {
    let both = "limits:\n  - { name: wide, rate: { requests: 1, per: 1h }, burst: 4 }\n  \
                - { name: narrow, rate: { requests: 2, per: 1h } }\n";
    let mesh = Mesh::new()
        .service("orders")
        .allow("web", "GET", "/**")
        .with("RateLimit", both)
        .start()
        .await;
    let web = mesh.as_workload("web");
    web.get("orders", "/").await.is_ok();
    web.get("orders", "/").await.is_ok();
    let refused = web.get("orders", "/").await;
    is_limited(&refused);
    assert!(
        refused.json()["detail"]
            .as_str()
            .is_some_and(|detail| detail.contains("narrow")),
        "{refused:?}"
    );
}

#[tokio::test]
async fn over_the_address_limit_and_without_a_token_is_429_and_not_401() {
    let provider = OpenIdProvider::new().await;
    let mesh = Mesh::new()
        .service("orders")
        .allow("web", "GET", "/**")
        .tokens_of(&provider.issuer())
        .with("RateLimit", &limit("address", 1))
        .start()
        .await;
    let web = mesh.as_workload("web");
    web.get("orders", "/")
        .await
        .is_problem(StatusCode::UNAUTHORIZED, "authn.missing");
    is_limited(&web.get("orders", "/").await);
    assert_eq!(mesh.requests_seen_by("orders"), 0);
}

#[tokio::test]
async fn a_limited_grpc_call_is_resource_exhausted() {
    let mesh = Mesh::new()
        .grpc_service("chat")
        .allow_grpc("web")
        .with("RateLimit", &limit("principal", 1))
        .start()
        .await;
    let mut chat = mesh.as_workload("web").chat("chat").await;
    chat.say(Line::new("one", 1)).await.unwrap();
    let refused = chat.say(Line::new("two", 2)).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    assert!(refused.message().starts_with("rate.limited"), "{refused:?}");
    assert_eq!(mesh.requests_seen_by("chat"), 1);
}

#[tokio::test]
async fn a_limit_keeps_its_count_across_an_unrelated_change() {
    let mesh = Mesh::new()
        .service("orders")
        .allow("web", "GET", "/**")
        .with("RateLimit", &limit("principal", 1))
        .start()
        .await;
    let web = mesh.as_workload("web");
    web.get("orders", "/").await.is_ok();
    let version = mesh.version_of("orders").await;
    mesh.edit("orders-policy.yaml", "Action::\"GET\"", "Action::\"read\"");
    mesh.edit("orders-policy.yaml", "action ==", "action in");
    mesh.until_acknowledged_after("orders", &version).await;
    is_limited(&web.get("orders", "/").await);
}
