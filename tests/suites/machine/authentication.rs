//! Authentication of requests: tokens of a real OpenID provider, and invalid tokens.

mod keys;

use aws_lc_rs::hmac;
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use http::StatusCode;
use merlon_tests::{
    Mesh,
    chat::Line,
    mesh::{Guard, MeshBuilder, Shared},
    openid::{AUDIENCE, OpenIdProvider, forge},
};
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use tonic::Code;

static PROVIDER: OnceCell<OpenIdProvider> = OnceCell::const_new();
static MESH: Shared = Shared::new();

async fn provider() -> &'static OpenIdProvider {
    PROVIDER.get_or_init(OpenIdProvider::new).await
}

async fn mesh() -> Guard {
    MESH.get(async || orders_for(&provider().await.issuer()).start().await)
        .await
}

/// `orders` and `chat`, which accept tokens of this issuer that policies permit.
fn orders_for(issuer: &str) -> MeshBuilder {
    Mesh::new()
        .service("orders")
        .policy(BUYERS)
        .tokens_of(issuer)
        .caller("web")
        .grpc_service("chat")
        .allow_grpc("web")
        .tokens_of(issuer)
}

const BUYERS: &str = r#"
@id("buyers")
permit(principal == Workload::"shop/web", action in Action::"http", resource)
when { context has user && context.user in Group::"customers/buyers" };

@id("sales-by-claim")
permit(principal == Workload::"shop/web", action in Action::"http", resource)
when { context has user && context.user.claims has department && context.user.claims.department == "sales"
    && context.path == "/by-claim" };

@id("scope")
permit(principal == Workload::"shop/web", action in Action::"http", resource)
when { context has user && context.user.scopes.contains("orders:write") && context.path == "/by-scope" };
"#;

/// Asserts that `token` is refused with 401 at a path of its own, that the program saw nothing, and that the log has the
/// `cause` but not the token. The response states only that the token is invalid.
async fn is_refused(mesh: &Mesh, path: &str, token: &str, cause: &str) {
    let reply = mesh
        .as_workload("web")
        .get("orders", path)
        .token(token)
        .await;
    reply.is_problem(StatusCode::UNAUTHORIZED, "authn.invalid_token");
    assert_eq!(
        reply.header("www-authenticate"),
        "Bearer error=\"invalid_token\"",
        "{reply:?}"
    );
    assert!(!reply.text().contains(cause), "{reply:?}");
    assert!(mesh.seen_at("orders", path).is_empty());
    let signature = token.rsplit('.').next().unwrap_or_default();
    let line = mesh.log_of("orders", &reply).await;
    line.has("reason", "authn.invalid_token")
        .has("status", "401");
    assert!(line.text("cause").contains(cause), "`{cause}` in {line:?}");
    if !signature.is_empty() {
        line.does_not_contain(signature);
    }
}

// --- accepted tokens ------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_token_of_the_provider_is_accepted_and_the_log_names_its_user() {
    let mesh = mesh().await;
    let token = provider().await.token_of("alice").await;
    let reply = mesh
        .as_workload("web")
        .get("orders", "/good")
        .token(&token)
        .await;
    // The proxy does not forward the token unless it is configured to.
    assert!(reply.is_ok().json()["headers"]["authorization"].is_null());
    let line = mesh.log_where("orders", "path", "/good").await;
    assert!(line.text("user").contains("alice"), "{line:?}");
    line.does_not_contain(&token);
}

#[tokio::test]
async fn a_good_token_without_the_right_is_403_and_not_401() {
    let mesh = mesh().await;
    let token = provider().await.token_of("bob").await;
    let reply = mesh
        .as_workload("web")
        .get("orders", "/clerk")
        .token(&token)
        .await;
    reply.is_problem(StatusCode::FORBIDDEN, "authz.denied");
    assert_eq!(reply.header("www-authenticate"), "");
    assert!(mesh.seen_at("orders", "/clerk").is_empty());
}

#[tokio::test]
async fn policies_read_declared_claims_and_scopes() {
    let mesh = mesh().await;
    let provider = provider().await;
    let web = mesh.as_workload("web");
    let sales = provider
        .sign(json!({}), json!({ "department": "sales", "groups": [] }))
        .await;
    web.get("orders", "/by-claim").token(&sales).await.is_ok();
    web.get("orders", "/by-scope")
        .token(&sales)
        .await
        .is_problem(StatusCode::FORBIDDEN, "authz.denied");

    let writer = provider
        .token_for("bob", AUDIENCE, "orders:read orders:write")
        .await;
    web.get("orders", "/by-scope").token(&writer).await.is_ok();
    web.get("orders", "/by-claim")
        .token(&writer)
        .await
        .is_problem(StatusCode::FORBIDDEN, "authz.denied");
}

#[tokio::test]
async fn rsa_and_edwards_keys_are_accepted_with_their_algorithms() {
    for algorithm in ["RS256", "PS256", "EdDSA"] {
        let provider = OpenIdProvider::with_algorithm(algorithm).await;
        let mesh = orders_for(&provider.issuer()).start().await;
        let token = provider.token_of("alice").await;
        mesh.as_workload("web")
            .get("orders", "/")
            .token(&token)
            .await
            .is_ok();
    }
}

#[tokio::test]
async fn a_small_clock_difference_is_tolerated() {
    let mesh = mesh().await;
    let provider = provider().await;
    let now = now();
    let claims = |exp, nbf| json!({ "groups": ["buyers"], "exp": exp, "nbf": nbf, "iat": nbf });
    let just = provider.sign(json!({}), claims(now - 5, now - 60)).await;
    mesh.as_workload("web")
        .get("orders", "/just-expired")
        .token(&just)
        .await
        .is_ok();
    let soon = provider.sign(json!({}), claims(now + 60, now + 15)).await;
    mesh.as_workload("web")
        .get("orders", "/just-not-yet")
        .token(&soon)
        .await
        .is_ok();
}

// --- refused tokens -------------------------------------------------------------------------------------------------

#[tokio::test]
async fn no_token_is_401_with_a_bare_challenge() {
    let mesh = mesh().await;
    let reply = mesh.as_workload("web").get("orders", "/none").await;
    reply.is_problem(StatusCode::UNAUTHORIZED, "authn.missing");
    assert_eq!(reply.header("www-authenticate"), "Bearer");
    assert!(mesh.seen_at("orders", "/none").is_empty());
}

#[tokio::test]
async fn a_token_signed_by_another_key_is_refused() {
    let forged = provider().await.sign_with_unknown_key().await;
    is_refused(
        &*mesh().await,
        "/forged",
        &forged,
        "the signature does not match",
    )
    .await;
}

#[tokio::test]
async fn a_token_whose_claims_were_changed_after_signing_is_refused() {
    let token = provider().await.token_of("bob").await;
    let parts: Vec<_> = token.split('.').collect();
    let mut claims: Value =
        serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(parts[1]).unwrap()).unwrap();
    claims["groups"] = json!(["buyers"]);
    let changed = format!(
        "{}.{}.{}",
        parts[0],
        BASE64_URL_SAFE_NO_PAD.encode(claims.to_string()),
        parts[2]
    );
    is_refused(
        &*mesh().await,
        "/changed",
        &changed,
        "the signature does not match",
    )
    .await;
}

#[tokio::test]
async fn an_expired_token_is_refused() {
    let expired = provider()
        .await
        .sign(json!({}), json!({ "exp": now() - 120 }))
        .await;
    is_refused(&*mesh().await, "/expired", &expired, "expired at").await;
}

#[tokio::test]
async fn a_token_that_is_not_valid_yet_is_refused() {
    let early = provider()
        .await
        .sign(json!({}), json!({ "nbf": now() + 120 }))
        .await;
    is_refused(&*mesh().await, "/early", &early, "not valid before").await;
}

#[tokio::test]
async fn a_token_without_an_expiry_is_refused() {
    let endless = provider()
        .await
        .sign(json!({}), json!({ "exp": null }))
        .await;
    is_refused(&*mesh().await, "/endless", &endless, "malformed").await;
}

#[tokio::test]
async fn a_token_for_another_audience_is_refused() {
    let provider = provider().await;
    let other = provider
        .token_for("alice", "https://payments.example", "orders:read")
        .await;
    is_refused(&*mesh().await, "/audience", &other, "another audience").await;
    let none = provider.sign(json!({}), json!({ "aud": null })).await;
    is_refused(&*mesh().await, "/no-audience", &none, "another audience").await;
}

#[tokio::test]
async fn a_token_of_another_issuer_is_refused() {
    let foreign = OpenIdProvider::new().await;
    let token = foreign.token_of("alice").await;
    is_refused(&*mesh().await, "/issuer", &token, "the issuer").await;
    // The same for the right key with a foreign issuer.
    let token = provider()
        .await
        .sign(json!({}), json!({ "iss": foreign.issuer() }))
        .await;
    is_refused(&*mesh().await, "/issuer-name", &token, "the issuer").await;
}

#[tokio::test]
async fn a_token_of_another_type_is_refused() {
    let provider = provider().await;
    // An ID token is for the client that requested it, not for this service.
    let id_token = provider.sign(json!({ "typ": "JWT" }), json!({})).await;
    is_refused(&*mesh().await, "/type", &id_token, "the token type").await;
    let untyped = provider.sign(json!({ "typ": null }), json!({})).await;
    is_refused(&*mesh().await, "/no-type", &untyped, "the token type").await;
}

#[tokio::test]
async fn an_unsigned_token_is_refused() {
    let mesh = mesh().await;
    let claims = good_claims().await;
    for algorithm in ["none", "None", "NONE"] {
        let header = json!({ "alg": algorithm, "typ": "at+jwt" });
        let signed = forge(&header, &claims, &[1; 64]);
        is_refused(&mesh, "/unsigned", &signed, "the algorithm").await;
        let unsigned = forge(&header, &claims, b"");
        is_refused(&mesh, "/unsigned", &unsigned, "the token is malformed").await;
    }
}

#[tokio::test]
async fn the_public_key_is_not_accepted_as_an_hmac_secret() {
    let provider = provider().await;
    let (pem, kid) = provider.public_key().await;
    let header = json!({ "alg": "HS256", "typ": "at+jwt", "kid": kid });
    let unsigned = forge(&header, &good_claims().await, b"");
    let input = unsigned.trim_end_matches('.');
    let tag = hmac::sign(
        &hmac::Key::new(hmac::HMAC_SHA256, pem.as_bytes()),
        input.as_bytes(),
    );
    let token = format!("{input}.{}", BASE64_URL_SAFE_NO_PAD.encode(tag));
    is_refused(&*mesh().await, "/hmac", &token, "the algorithm").await;
}

#[tokio::test]
async fn a_key_is_used_with_its_own_algorithm_only() {
    // The header says RSA, the key is an elliptic curve's.
    let (_, kid) = provider().await.public_key().await;
    let header = json!({ "alg": "RS256", "typ": "at+jwt", "kid": kid });
    let token = forge(&header, &good_claims().await, &[1; 256]);
    is_refused(&*mesh().await, "/algorithm", &token, "the algorithm").await;
}

#[tokio::test]
async fn an_unknown_critical_extension_is_refused() {
    let token = forge(
        &json!({ "alg": "ES256", "typ": "at+jwt", "crit": ["exp2"], "exp2": 1 }),
        &good_claims().await,
        &[1; 64],
    );
    let reply = mesh()
        .await
        .as_workload("web")
        .get("orders", "/critical")
        .token(&token)
        .await;
    assert_eq!(reply.status, StatusCode::UNAUTHORIZED, "{reply:?}");
}

#[tokio::test]
async fn a_value_that_is_not_a_token_is_refused() {
    let mesh = mesh().await;
    let web = mesh.as_workload("web");
    let good = provider().await.token_of("alice").await;
    let is_unauthorized = |call: merlon_tests::client::Call| async {
        let reply = call.await;
        assert_eq!(reply.status, StatusCode::UNAUTHORIZED, "{reply:?}");
        assert!(
            reply.header("www-authenticate").starts_with("Bearer"),
            "{reply:?}"
        );
    };
    for token in [
        "x",
        "a.b",
        "a.b.c",
        "a.b.c.d",
        "..",
        "e30.e30.",
        &"A".repeat(40_000),
    ] {
        is_unauthorized(web.get("orders", "/no-token").token(token)).await;
    }
    for value in [
        "Bearer",
        "Basic YWxpY2U6c2VjcmV0",
        &format!("Bearer  {good} x"),
        &format!("bearer{good}"),
    ] {
        is_unauthorized(
            web.get("orders", "/no-token")
                .header("authorization", value),
        )
        .await;
    }
    assert!(mesh.seen_at("orders", "/no-token").is_empty());
}

#[tokio::test]
async fn an_ambiguous_or_malformed_payload_is_refused() {
    let provider = provider().await;
    let (iss, exp) = (provider.issuer(), now() + 600);
    for payload in [
        format!(r#"{{"iss":"{iss}","aud":"{AUDIENCE}","exp":{exp},"sub":"bob","sub":"alice"}}"#),
        format!(r#"{{"iss":"{iss}","aud":"{AUDIENCE}","exp":"{exp}","sub":"alice"}}"#),
        format!(r#"{{"iss":"{iss}","aud":"{AUDIENCE}","exp":1e999,"sub":"alice"}}"#),
        format!(r#"["{iss}"]"#),
        "not json".to_owned(),
    ] {
        let token = provider.sign_payload(&payload).await;
        let reply = mesh()
            .await
            .as_workload("web")
            .get("orders", "/twice")
            .token(&token)
            .await;
        assert_eq!(
            reply.status,
            StatusCode::UNAUTHORIZED,
            "{payload}\n{reply:?}"
        );
    }
    assert!(mesh().await.seen_at("orders", "/twice").is_empty());
}

#[tokio::test]
async fn a_token_in_the_query_is_refused() {
    let token = provider().await.token_of("alice").await;
    let target = format!("/query?access_token={token}");
    let reply = mesh().await.as_workload("web").get("orders", &target).await;
    assert!(reply.status == 400 || reply.status == 401, "{reply:?}");
    assert!(mesh().await.seen_at("orders", &target).is_empty());
}

#[tokio::test]
async fn a_grpc_call_without_a_token_is_unauthenticated() {
    let mesh = mesh().await;
    let mut chat = mesh.as_workload("web").chat("chat").await;
    let refused = chat.say(Line::new("hello", 1)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused:?}");
    assert_eq!(mesh.requests_seen_by("chat"), 0);
}

// --- helpers --------------------------------------------------------------------------------------------------------

async fn good_claims() -> Value {
    let iss = provider().await.issuer();
    json!({ "iss": iss, "sub": "alice", "aud": AUDIENCE, "iat": now(), "exp": now() + 600, "groups": ["buyers"] })
}

fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map(|since| since.as_secs()).unwrap_or_default()
}
