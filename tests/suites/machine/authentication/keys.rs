//! Keys that an issuer adds or replaces, and issuers that are unavailable.

use http::StatusCode;
use merlon_tests::{Client, openid::OpenIdProvider, until, wait::TIMEOUT};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{mesh, now, orders_for, provider};

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
    // A token signed by a key that is no longer published and was not seen before.
    let reply = web
        .get("orders", "/")
        .token(&provider.sign_with_retired_key().await)
        .await;
    assert_eq!(reply.status, StatusCode::UNAUTHORIZED, "{reply:?}");
    // Two services have the same issuer; unknown keys cost one bounded fetch, not one per request.
    assert!(provider.keys_fetched().await <= before + 2);
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
        let reply = web.get("orders", "/").token(&token).await;
        assert_eq!(reply.status, StatusCode::UNAUTHORIZED, "{reply:?}");
    }
    assert!(provider.keys_fetched().await <= before + 2);
}

#[tokio::test]
async fn invented_keys_delay_a_real_new_key_by_seconds_at_most() {
    let provider = OpenIdProvider::new().await;
    let mesh = orders_for(&provider.issuer()).start().await;
    let web = mesh.as_workload("web");
    until_accepted(&web, &provider.token_of("alice").await).await;
    let mut number = 0;
    let mut invent = async || {
        number += 1;
        let header = json!({ "kid": format!("invented-{number}") });
        let token = provider.sign(header, json!({})).await;
        let reply = web.get("orders", "/invented").token(&token).await;
        assert_eq!(reply.status, StatusCode::UNAUTHORIZED, "{reply:?}");
    };
    // This request causes a fetch before the keys change.
    invent().await;
    provider.rotate_keys().await;
    let start = std::time::Instant::now();
    let new = provider.token_of("alice").await;
    until("the new key is known", async || {
        invent().await;
        web.get("orders", "/").token(&new).await.status == StatusCode::OK
    })
    .await;
    let elapsed = start.elapsed();
    assert!(elapsed < std::time::Duration::from_secs(20), "{elapsed:?}");
    assert!(mesh.seen_at("orders", "/invented").is_empty());
}

#[tokio::test]
async fn a_stream_ends_when_the_token_it_was_opened_with_expires() {
    let mesh = mesh().await;
    let now = now();
    // Accepted for two more seconds: the clock tolerance is 30 seconds.
    let claims = json!({ "groups": ["buyers"], "exp": now - 28, "nbf": now - 60, "iat": now - 60 });
    let token = provider().await.sign(json!({}), claims).await;
    let mut stream = mesh.as_workload("web").tcp().await;
    let head = format!(
        "POST /stream HTTP/1.1\r\nhost: orders.shop\r\nauthorization: Bearer {token}\r\n\
         transfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut read = Vec::new();
    while !String::from_utf8_lossy(&read).contains("first") {
        read.push(stream.read_u8().await.unwrap());
    }
    assert!(read.starts_with(b"HTTP/1.1 200 "));
    // From here on no bytes are sent and no configuration changes.
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(TIMEOUT, stream.read_to_end(&mut rest));
    let _ = ended.await.expect("the stream did not end");
    assert!(
        !rest.ends_with(b"0\r\n\r\n"),
        "the body must not look complete"
    );
    mesh.log_where("orders", "path", "/stream")
        .await
        .has("aborted", "true")
        .has("reason", "authn.invalid_token");
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
        let reply = web.get("orders", "/").token(&unknown).await;
        assert!(
            reply.status == 401 || reply.status == 503,
            "{mode}: {reply:?}"
        );
    }
}

#[tokio::test]
async fn without_any_keys_tokens_are_refused_and_accepted_when_the_provider_is_back() {
    let provider = OpenIdProvider::new().await;
    let token = provider.token_of("alice").await;
    provider.set_mode("error").await;
    let mesh = orders_for(&provider.issuer()).start().await;
    let web = mesh.as_workload("web");
    let reply = web.get("orders", "/down").token(&token).await;
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE, "{reply:?}");
    assert_eq!(
        reply.json()["reason"],
        "authn.keys_unavailable",
        "{reply:?}"
    );
    assert!(!reply.header("retry-after").is_empty());
    assert!(mesh.seen_at("orders", "/down").is_empty());

    provider.set_mode("ok").await;
    until_accepted(&web, &token).await;
}

async fn until_accepted(web: &Client, token: &str) {
    until("the token is accepted", async || {
        web.get("orders", "/").token(token).await.status == StatusCode::OK
    })
    .await;
}
