//! Rate limits.

use merlon_tests::{
    Mesh,
    chat::Line,
    client::Call,
    mesh::{Guard, Shared},
    openid::OpenIdProvider,
    refusals::Refused,
};
use tokio::sync::OnceCell;
use tonic::Code;

static MESH: Shared = Shared::new();

/// The issuer of the services that require tokens.
async fn provider() -> &'static OpenIdProvider {
    static PROVIDER: OnceCell<OpenIdProvider> = OnceCell::const_new();
    PROVIDER.get_or_init(OpenIdProvider::new).await
}

/// A service for each test, because a limit counts the requests to one service.
async fn mesh() -> Guard {
    let issuer = provider().await.issuer();
    MESH.get(async || {
        Mesh::new()
            .service("by-principal")
            .allow("web", "GET", "/**")
            .allow("batch", "GET", "/**")
            .with("RateLimit", &limit("principal", 3))
            .service("by-address")
            .allow("web", "GET", "/**")
            .allow("batch", "GET", "/**")
            .with("RateLimit", &limit("address", 2))
            .service("by-user")
            .allow("web", "GET", "/**")
            .tokens_of(&issuer)
            .with("RateLimit", &limit("user", 1))
            .service("two-limits")
            .allow("web", "GET", "/**")
            .with("RateLimit", TWO_LIMITS)
            .service("early")
            .allow("web", "GET", "/**")
            .tokens_of(&issuer)
            .with("RateLimit", &limit("address", 1))
            .grpc_service("chat")
            .allow_grpc("web")
            .with("RateLimit", &limit("principal", 1))
            .service("changed")
            .allow("web", "GET", "/**")
            .with("RateLimit", &limit("principal", 1))
            .start()
            .await
    })
    .await
}

const TWO_LIMITS: &str = "limits:\n  - { name: wide, rate: { requests: 1, per: 1h }, burst: 4 }\n  \
                          - { name: narrow, rate: { requests: 2, per: 1h } }\n";

fn limit(per: &str, requests: u32) -> String {
    // So slow that nothing refills while the test runs.
    format!(
        "limits:\n  - name: test\n    per: {per}\n    rate: {{ requests: {requests}, per: 1h }}\n"
    )
}

/// Asserts that the proxy of `service` refuses the request with 429, by its limit `limit`, and with a time to wait.
async fn is_limited(mesh: &Mesh, service: &str, limit: &str, call: Call) {
    let rows = [("over the limit", call, 429, "rate.limited")];
    for Refused { reply, .. } in mesh.refuses(service, rows).await {
        let seconds = reply.header("retry-after").parse::<u64>();
        let seconds = seconds.expect("seconds in Retry-After");
        assert!((1..=3_600).contains(&seconds), "{reply:?}");
        let problem = reply.json();
        let detail = problem["detail"].as_str().unwrap_or_default();
        assert!(detail.contains(&format!("`{limit}`")), "{reply:?}");
    }
}

#[tokio::test]
async fn each_principal_has_a_limit_of_its_own_and_over_it_gets_429_with_retry_after() {
    let mesh = mesh().await;
    let web = mesh.as_workload("web");
    for _ in 0..3 {
        web.get("by-principal", "/").await.is_ok();
    }
    let fourth = web.get("by-principal", "/");
    is_limited(&mesh, "by-principal", "test", fourth).await;
    assert_eq!(mesh.requests_seen_by("by-principal"), 3);

    mesh.as_workload("batch")
        .get("by-principal", "/")
        .await
        .is_ok();
}

#[tokio::test]
async fn an_address_has_one_limit_for_all_its_callers() {
    let mesh = mesh().await;
    mesh.as_workload("web").get("by-address", "/").await.is_ok();
    mesh.as_workload("batch")
        .get("by-address", "/")
        .await
        .is_ok();
    for workload in ["web", "batch"] {
        let call = mesh.as_workload(workload).get("by-address", "/");
        is_limited(&mesh, "by-address", "test", call).await;
    }
    assert_eq!(mesh.requests_seen_by("by-address"), 2);
}

#[tokio::test]
async fn each_user_has_a_limit_of_its_own_behind_one_workload() {
    let provider = provider().await;
    let mesh = mesh().await;
    let web = mesh.as_workload("web");
    let (alice, bob) = (
        provider.token_of("alice").await,
        provider.token_of("bob").await,
    );
    web.get("by-user", "/").token(&alice).await.is_ok();
    // Another token of the same user counts against the same limit.
    let another = provider.token_of("alice").await;
    for token in [&alice, &another] {
        let call = web.get("by-user", "/").token(token);
        is_limited(&mesh, "by-user", "test", call).await;
    }
    web.get("by-user", "/").token(&bob).await.is_ok();
    assert_eq!(mesh.requests_seen_by("by-user"), 2);
}

#[tokio::test]
async fn all_limits_must_pass_and_a_burst_may_be_larger_than_the_rate() {
    let mesh = mesh().await;
    let web = mesh.as_workload("web");
    web.get("two-limits", "/").await.is_ok();
    web.get("two-limits", "/").await.is_ok();
    let third = web.get("two-limits", "/");
    is_limited(&mesh, "two-limits", "narrow", third).await;
    assert_eq!(mesh.requests_seen_by("two-limits"), 2);
}

#[tokio::test]
async fn over_the_address_limit_and_without_a_token_is_429_and_not_401() {
    let mesh = mesh().await;
    let web = mesh.as_workload("web");
    let first = (
        "under the limit",
        web.get("early", "/"),
        401,
        "authn.missing",
    );
    mesh.refuses("early", [first]).await;
    is_limited(&mesh, "early", "test", web.get("early", "/")).await;
    assert_eq!(mesh.requests_seen_by("early"), 0);
}

#[tokio::test]
async fn a_limited_grpc_call_is_resource_exhausted() {
    let mesh = mesh().await;
    let mut chat = mesh.as_workload("web").chat("chat").await;
    chat.say(Line::new("one", 1)).await.unwrap();
    let refused = chat.say(Line::new("two", 2)).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    assert!(refused.message().starts_with("rate.limited"), "{refused:?}");
    assert_eq!(mesh.requests_seen_by("chat"), 1);
}

#[tokio::test]
async fn a_limit_keeps_its_count_across_an_unrelated_change() {
    let mesh = mesh().await;
    let web = mesh.as_workload("web");
    web.get("changed", "/").await.is_ok();
    let version = mesh.version_of("changed").await;
    mesh.edit(
        "changed-policy.yaml",
        "action == Action::\"GET\"",
        "action in Action::\"read\"",
    );
    mesh.until_acknowledged_after("changed", &version).await;
    is_limited(&mesh, "changed", "test", web.get("changed", "/")).await;
}
