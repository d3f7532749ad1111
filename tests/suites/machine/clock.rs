//! What ends or is due at a time of day: certificates, tokens, join tokens. The tests set the clock of the
//! mesh's processes; that of the token issuer and of the tests themselves is the machine's.

use std::time::Duration;

use merlon_certs::PrivateKey;
use merlon_config::clock;
use merlon_tests::{
    Mesh,
    mesh::{LogLine, MeshBuilder, identity, spiffe_id},
    openid::OpenIdProvider,
};
use serde_json::{Value, json};
use tonic::Code;

const fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(60 * minutes)
}

/// `web` may call `orders`. All processes have a clock that the test sets.
fn orders() -> MeshBuilder {
    Mesh::new()
        .service("orders")
        .allow("web", "GET", "/**")
        .clock()
}

/// [`orders`] with tokens of an issuer, and certificates that outlive every test.
async fn orders_with_tokens(provider: &OpenIdProvider) -> Mesh {
    orders()
        .tokens_of(&provider.issuer())
        .mesh("  certificates: { lifetime: 168h }\n")
        .start()
        .await
}

/// The time of the issuer, in seconds since 1970.
fn now() -> u64 {
    clock::since_epoch().as_secs()
}

// --- certificates ---------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_clock_that_is_set_back_by_four_minutes_breaks_nothing() {
    let mesh = orders().start().await;
    let web = mesh.as_workload("web");
    web.get("orders", "/before").await.is_ok();

    mesh.clock().backward(minutes(4)).await;
    web.get("orders", "/open-connection").await.is_ok();
    // A proxy that starts verifies its own certificate, and both sides make new handshakes.
    mesh.sidecar("orders").kill9();
    mesh.sidecar("orders").start().await;
    web.get("orders", "/new-connection").await.is_ok();
    mesh.rotate("web").await;
    web.get("orders", "/new-certificate").await.is_ok();
}

#[tokio::test]
async fn a_join_token_past_its_expiry_is_refused() {
    let mesh = orders().start().await;
    let csr = || {
        let key = PrivateKey::generate().unwrap();
        key.csr(&spiffe_id("web")).unwrap()
    };
    let path = format!("/v1/certificates?identity={}", identity("web"));
    let issued = mesh.control_plane().get(&path).await;
    assert_eq!(issued.as_array().map(Vec::len), Some(1), "{issued}");
    // Tokens live ten minutes.
    let token = mesh.control_plane().join_token("web").await;
    let client = mesh.anonymous_peer(&token);

    mesh.clock().forward(minutes(11)).await;
    let refused = client.issue(csr(), Some(&token)).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    assert!(
        refused.message().contains("the join token expired at"),
        "{refused:?}"
    );
    assert_eq!(mesh.control_plane().get(&path).await, issued);
    let log = LogLine::all(&mesh.control_plane().log());
    let line = log
        .iter()
        .rfind(|line| line.text("event") == "certificate.refused");
    line.unwrap().has("reason", "token_expired");

    let fresh = mesh.control_plane().join_token("web").await;
    client.issue(csr(), Some(&fresh)).await.unwrap();
}

// --- tokens of users ------------------------------------------------------------------------------------------------

/// A token that expires ten minutes from now, with these claims in addition.
async fn token(provider: &OpenIdProvider, mut claims: Value) -> String {
    claims["exp"] = json!(now() + 600);
    provider.sign(json!({}), claims).await
}

/// Asserts that a token is refused with 401 and this cause in the log.
async fn is_refused(mesh: &Mesh, token: &str, cause: &str) {
    let call = mesh.as_workload("web").get("orders", "/refused");
    let rows = [(cause, call.token(token), 401, "authn.invalid_token")];
    for refused in mesh.refuses("orders", rows).await {
        let found = refused.log.text("cause");
        assert!(found.contains(cause), "`{cause}` in {found}");
    }
}

#[tokio::test]
async fn a_token_that_was_verified_is_refused_after_its_expiry_and_the_clock_skew() {
    let provider = OpenIdProvider::new().await;
    let mesh = orders_with_tokens(&provider).await;
    let web = mesh.as_workload("web");
    let token = token(&provider, json!({})).await;
    let hits = mesh
        .metric("orders", "merlon_token_cache_total", &[("result", "hit")])
        .await;
    for _ in 0..2 {
        web.get("orders", "/").token(&token).await.is_ok();
    }
    hits.grew_by(1).await;

    // Ten minutes and 30 seconds of clock skew.
    mesh.clock().forward(minutes(11)).await;
    is_refused(&mesh, &token, "the token expired at").await;
}

#[tokio::test]
async fn after_the_clock_was_set_back_a_token_is_not_valid_yet_unless_the_clock_skew_covers_it() {
    let provider = OpenIdProvider::new().await;
    let mesh = orders_with_tokens(&provider).await;
    let web = mesh.as_workload("web");
    let issued = token(&provider, json!({ "iat": now() })).await;
    let valid = token(&provider, json!({ "iat": null, "nbf": now() })).await;

    // More than the 30 seconds of clock skew, and less than the five minutes that certificates allow for.
    mesh.clock().backward(minutes(4)).await;
    is_refused(&mesh, &issued, "the token was issued in the future").await;
    is_refused(&mesh, &valid, "the token is not valid before").await;

    let covered = minutes(4) - Duration::from_secs(10);
    mesh.clock().forward(covered).await;
    for token in [&issued, &valid] {
        web.get("orders", "/").token(token).await.is_ok();
    }
}
