//! Keys that an issuer adds or replaces, and issuers that are unavailable.

use http::StatusCode;
use merlon_tests::{
    Client, Mesh,
    client::Call,
    openid::{AUDIENCE, OpenIdProvider},
    until,
};
use serde_json::json;

use super::orders_for;

#[tokio::test]
async fn a_key_that_the_provider_adds_is_picked_up_and_the_old_one_stays_valid() {
    let provider = OpenIdProvider::new().await;
    let mesh = orders_for(&provider.issuer()).start().await;
    let web = mesh.as_workload("web");
    let old = provider.token_of("alice").await;
    web.get("orders", "/").token(&old).await.is_ok();

    provider.add_key().await;
    let new = provider.token_of("alice").await;
    until_accepted(&web, &new).await;
    web.get("orders", "/").token(&old).await.is_ok();
}

#[tokio::test]
async fn keys_that_the_provider_replaces_are_picked_up_with_one_fetch() {
    let provider = OpenIdProvider::new().await;
    let mesh = orders_for(&provider.issuer()).start().await;
    let web = mesh.as_workload("web");
    web.get("orders", "/")
        .token(&provider.token_of("alice").await)
        .await
        .is_ok();

    provider.rotate_keys().await;
    let before = provider.keys_fetched().await;
    until_accepted(&web, &provider.token_of("alice").await).await;
    assert_eq!(provider.keys_fetched().await, before + 1);
    // A token signed by a key that is no longer published and was not seen before.
    let retired = provider.sign_with_retired_key().await;
    let attempt = web.get("orders", "/").token(&retired);
    is_unknown_key(&mesh, attempt).await;
}

/// Waits until a token is accepted whose key the proxy has not fetched yet. Until then its key is unknown: a fetch for
/// another unknown key, less than 5 seconds ago, delays this one.
async fn until_accepted(web: &Client, token: &str) {
    until("the key is known", async || {
        let reply = web.get("orders", "/").token(token).await;
        if reply.status != StatusCode::OK {
            reply.is_problem(StatusCode::UNAUTHORIZED, "authn.invalid_token");
        }
        reply.status == StatusCode::OK
    })
    .await;
}

/// Asserts that the key of a token is not known.
async fn is_unknown_key(mesh: &Mesh, attempt: Call) {
    let rows = [("an unknown key", attempt, 401, "authn.invalid_token")];
    let refused = mesh.refuses("orders", rows).await;
    let cause = refused[0].log.text("cause");
    assert!(cause.contains("has no key"), "{cause}");
}

#[tokio::test]
async fn unknown_keys_do_not_make_the_proxy_fetch_once_per_request() {
    let provider = OpenIdProvider::new().await;
    let mesh = orders_for(&provider.issuer()).start().await;
    let web = mesh.as_workload("web");
    web.get("orders", "/")
        .token(&provider.token_of("alice").await)
        .await
        .is_ok();
    let before = provider.keys_fetched().await;
    for number in 0..20 {
        let header = json!({ "kid": format!("unknown-{number}") });
        let token = provider.sign(header, json!({})).await;
        is_unknown_key(&mesh, web.get("orders", "/").token(&token)).await;
    }
    // One in 5 seconds. Without a bound it would be one for each.
    let fetched = provider.keys_fetched().await - before;
    assert!(fetched < 20, "{fetched}");
}

#[tokio::test]
async fn invented_keys_do_not_use_up_the_fetch_that_a_real_new_key_needs() {
    let provider = OpenIdProvider::new().await;
    let mesh = orders_for(&provider.issuer()).start().await;
    let web = mesh.as_workload("web");
    web.get("orders", "/")
        .token(&provider.token_of("alice").await)
        .await
        .is_ok();
    let mut number = 0;
    let mut invent = async || {
        number += 1;
        let header = json!({ "kid": format!("invented-{number}") });
        let token = provider.sign(header, json!({})).await;
        is_unknown_key(&mesh, web.get("orders", "/invented").token(&token)).await;
    };
    // This request causes a fetch before the keys change.
    invent().await;
    provider.rotate_keys().await;
    let before = provider.keys_fetched().await;
    let new = provider.token_of("alice").await;
    until("the new key is known", async || {
        invent().await;
        let reply = web.get("orders", "/").token(&new).await;
        if reply.status != StatusCode::OK {
            reply.is_problem(StatusCode::UNAUTHORIZED, "authn.invalid_token");
        }
        reply.status == StatusCode::OK
    })
    .await;
    // The first fetch after the change has brought it.
    assert_eq!(provider.keys_fetched().await, before + 1);
}

#[tokio::test]
async fn tokens_of_known_keys_are_accepted_while_the_provider_is_down() {
    let provider = OpenIdProvider::new().await;
    let mesh = orders_for(&provider.issuer()).start().await;
    let web = mesh.as_workload("web");
    web.get("orders", "/")
        .token(&provider.token_of("alice").await)
        .await
        .is_ok();
    let fresh = provider.token_of("alice").await;
    for mode in ["down", "error", "html", "huge", "silent"] {
        provider.set_mode(mode).await;
        web.get("orders", "/").token(&fresh).await.is_ok();
        let unknown = provider
            .sign(json!({ "kid": format!("kid-{mode}") }), json!({}))
            .await;
        is_unknown_key(&mesh, web.get("orders", "/").token(&unknown)).await;
    }
}

#[tokio::test]
async fn without_any_keys_tokens_are_refused_and_accepted_when_the_provider_is_back() {
    let provider = OpenIdProvider::new().await;
    let token = provider.token_of("alice").await;
    provider.set_mode("error").await;
    let mesh = orders_for(&provider.issuer()).start().await;
    let web = mesh.as_workload("web");
    let attempt = web.get("orders", "/down").token(&token);
    let rows = [("no keys", attempt, 503, "authn.keys_unavailable")];
    let refused = mesh.refuses("orders", rows).await;
    assert_eq!(refused[0].reply.header("retry-after"), "30");

    provider.set_mode("ok").await;
    until("the keys are fetched", async || {
        let reply = web.get("orders", "/").token(&token).await;
        if reply.status != StatusCode::OK {
            reply.is_problem(StatusCode::SERVICE_UNAVAILABLE, "authn.keys_unavailable");
        }
        reply.status == StatusCode::OK
    })
    .await;
}

#[tokio::test]
async fn an_issuer_that_does_not_answer_affects_the_tokens_of_no_other() {
    let (customers, partners) = (OpenIdProvider::new().await, OpenIdProvider::new().await);
    partners.set_mode("silent").await;
    let mut spec = "issuers:\n".to_owned();
    for (name, provider) in [("customers", &customers), ("partners", &partners)] {
        spec += &format!(
            "  - name: {name}\n    issuer: {}\n    audiences: [\"{AUDIENCE}\"]\n",
            provider.issuer()
        );
    }
    let mesh = Mesh::new()
        .service("orders")
        .allow("web", "GET", "/**")
        .with("RequestAuthentication", &spec)
        .start()
        .await;
    let web = mesh.as_workload("web");
    let customer = customers.token_of("alice").await;
    web.get("orders", "/").token(&customer).await.is_ok();

    let partner = partners.sign(json!({}), json!({})).await;
    let attempt = web.get("orders", "/").token(&partner);
    let rows = [("a partner", attempt, 503, "authn.keys_unavailable")];
    mesh.refuses("orders", rows).await;
    // While a request waits for the keys of one issuer, another is answered.
    let waiting = web.get("orders", "/").token(&partner).send();
    let answered = async { web.get("orders", "/").token(&customer).await };
    let (waiting, answered) = tokio::join!(waiting, answered);
    answered.is_ok();
    let waiting = waiting.unwrap();
    waiting.is_problem(StatusCode::SERVICE_UNAVAILABLE, "authn.keys_unavailable");
}
