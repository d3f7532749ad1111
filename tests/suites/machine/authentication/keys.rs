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
    let mesh = orders_for(&provider.issuer())
        .limits("jwksAnyKey: 200ms")
        .start()
        .await;
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
    let mesh = orders_for(&provider.issuer())
        .limits("jwksAnyKey: 200ms")
        .start()
        .await;
    let web = mesh.as_workload("web");
    let accepted = provider.token_of("alice").await;
    let cached = mesh
        .metric("orders", "merlon_token_cache_total", &[("result", "hit")])
        .await;
    for _ in 0..2 {
        web.get("orders", "/").token(&accepted).await.is_ok();
    }
    cached.grew_by(1).await;

    provider.rotate_keys().await;
    let before = provider.keys_fetched().await;
    until_accepted(&web, &provider.token_of("alice").await).await;
    assert_eq!(provider.keys_fetched().await, before + 1);
    // The token that was accepted, and remembered, before its key was withdrawn.
    let attempt = web.get("orders", "/").token(&accepted);
    is_unknown_key(&mesh, attempt).await;
    // A token signed by a key that is no longer published and was not seen before.
    let retired = provider.sign_with_retired_key().await;
    let attempt = web.get("orders", "/").token(&retired);
    is_unknown_key(&mesh, attempt).await;
}

/// Waits until a token is accepted whose key the proxy has not fetched yet. Until then its key is unknown: a fetch for
/// another unknown key, within the time of the limit, delays this one.
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
    let mesh = orders_for(&provider.issuer())
        .limits("jwksAnyKey: 1h")
        .start()
        .await;
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
    // At most one in the time of the limit, for all of them together.
    let fetched = provider.keys_fetched().await - before;
    assert!(fetched <= 1, "{fetched}");
}

#[tokio::test]
async fn invented_keys_do_not_use_up_the_fetch_that_a_real_new_key_needs() {
    let provider = OpenIdProvider::new().await;
    let mesh = orders_for(&provider.issuer())
        .limits("jwksAnyKey: 200ms")
        .start()
        .await;
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
    let mesh = orders_for(&provider.issuer())
        .limits("jwksAnyKey: 1ms, jwksTimeout: 200ms")
        .start()
        .await;
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
        // A request for keys that get no answer waits until the end of the test.
        .limits("jwksTimeout: 1h, jwksWait: 1h")
        .start()
        .await;
    let web = mesh.as_workload("web");
    let customer = customers.token_of("alice").await;
    web.get("orders", "/").token(&customer).await.is_ok();

    let partner = partners.sign(json!({}), json!({})).await;
    let waiting = web.get("orders", "/partner").token(&partner).send();
    let mut waiting = std::pin::pin!(waiting);
    // It is polled until the proxy has it: the metric counts it from the end of its head.
    let held = async {
        let active = async || {
            let orders = mesh.sidecar("orders");
            orders
                .metric("merlon_active_requests", "direction=\"inbound\"")
                .await
        };
        until("the partner's request waits", async || {
            active().await == 1.0
        })
        .await;
    };
    tokio::select! {
        answer = &mut waiting => panic!("{answer:?}"),
        () = held => {}
    }
    // Meanwhile a known key and a key that has to be fetched first are accepted from the other issuer.
    web.get("orders", "/").token(&customer).await.is_ok();
    customers.add_key().await;
    let fresh = customers.token_of("alice").await;
    let before = customers.keys_fetched().await;
    web.get("orders", "/").token(&fresh).await.is_ok();
    assert_eq!(customers.keys_fetched().await, before + 1);
    assert!(futures_util::poll!(waiting).is_pending());
    assert!(mesh.seen_at("orders", "/partner").is_empty());
}

#[tokio::test]
async fn a_token_of_an_issuer_that_does_not_answer_is_refused_after_the_longest_wait() {
    let provider = OpenIdProvider::new().await;
    provider.set_mode("silent").await;
    let mesh = orders_for(&provider.issuer())
        .limits("jwksTimeout: 1h, jwksWait: 100ms")
        .start()
        .await;
    let token = provider.sign(json!({}), json!({})).await;
    let attempt = mesh.as_workload("web").get("orders", "/").token(&token);
    let rows = [("a silent issuer", attempt, 503, "authn.keys_unavailable")];
    mesh.refuses("orders", rows).await;
}
