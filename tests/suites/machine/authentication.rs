//! Authentication of requests: tokens of a real OpenID provider, and invalid tokens.

mod expiry;
mod keys;

use aws_lc_rs::hmac;
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use http::StatusCode;
use merlon_config::clock;
use merlon_tests::{
    Client, Mesh,
    app::App,
    chat::Line,
    mesh::{Guard, MeshBuilder, Shared, Standalone, tokens_of},
    openid::{AUDIENCE, OpenIdProvider, forge},
    ports,
    refusals::Refused,
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

/// Asserts that `token` is refused with 401, that the program saw nothing, and that the log has the `cause` but not the
/// token. The response states only that the token is invalid.
async fn is_refused(mesh: &Mesh, token: &str, cause: &str) {
    let call = mesh.as_workload("web").get("orders", "/refused");
    let rows = [(cause, call.token(token), 401, "authn.invalid_token")];
    for Refused { reply, log } in mesh.refuses("orders", rows).await {
        assert_eq!(
            reply.header("www-authenticate"),
            "Bearer error=\"invalid_token\"",
            "{reply:?}"
        );
        assert!(!reply.text().contains(cause), "{reply:?}");
        assert!(log.text("cause").contains(cause), "`{cause}` in {log:?}");
        // Shorter parts may occur in a line by chance.
        for part in token.split('.').filter(|part| part.len() > 20) {
            log.does_not_contain(part);
        }
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
    let headers = reply.is_ok().json()["headers"].clone();
    assert_eq!(headers["merlon-user"], "customers#alice");
    // The proxy does not forward the token unless it is configured to.
    assert!(headers["authorization"].is_null());
    let line = mesh.log_where("orders", "path", "/good").await;
    assert!(line.text("user").contains("alice"), "{line:?}");
    line.does_not_contain(&token);
}

#[tokio::test]
async fn a_subject_of_any_characters_reaches_the_program_percent_encoded() {
    let mesh = mesh().await;
    let claims = json!({ "sub": "50% é\r\nx: y", "groups": ["buyers"] });
    let token = provider().await.sign(json!({}), claims).await;
    let reply = mesh
        .as_workload("web")
        .get("orders", "/encoded")
        .token(&token)
        .await;
    let headers = reply.is_ok().json()["headers"].clone();
    let user = "customers#50%25%20%C3%A9%0D%0Ax:%20y";
    assert_eq!(headers["merlon-user"], user);
    assert!(headers["x"].is_null(), "{headers}");
}

#[tokio::test]
async fn behind_a_gateway_the_program_gets_the_user_that_its_own_proxy_verified() {
    let issuer = provider().await.issuer();
    let forwarding = format!("{}forwardToken: true\n", tokens_of(&issuer));
    let mesh = Mesh::new()
        .service("verifying")
        .tokens_of(&issuer)
        .service("trusting")
        .gateway("edge")
        .route("shop.example", "/verifying", "verifying")
        .route("shop.example", "/trusting", "trusting")
        .allow_anyone()
        .with("RequestAuthentication", &forwarding)
        .start()
        .await;
    let token = provider().await.token_of("alice").await;
    let browser = mesh.at_gateway("edge");
    let headers = async |path: &str| {
        let forged = browser
            .get("shop.example", path)
            .header("merlon-user", "forged");
        let reply = forged.token(&token).await;
        reply.is_ok().json()["headers"].clone()
    };
    assert_eq!(
        headers("/verifying").await["merlon-user"],
        "customers#alice"
    );
    // The gateway has verified the token; this program's own proxy has not.
    assert!(headers("/trusting").await["merlon-user"].is_null());
    for path in ["/verifying", "/trusting"] {
        let line = mesh.log_where("edge", "path", path).await;
        line.has("user", "customers#alice");
    }
}

#[tokio::test]
async fn a_program_without_a_sidecar_gets_the_user_that_the_gateway_verified() {
    let (app, port) = (App::http().await, ports::free());
    let gateway = Standalone::gateway_of("edge", port.port(), "shop.example", ("orders", &app));
    let spec = tokens_of(&provider().await.issuer()).replace('\n', "\n  ");
    let authentication = format!(
        "apiVersion: merlon.io/v1alpha1\nkind: RequestAuthentication\n\
         metadata: {{ name: edge, namespace: shop }}\nspec:\n  \
         targetRefs: [{{ kind: Gateway, name: edge }}]\n  {spec}\n"
    );
    gateway.write("tokens.yaml", &authentication);
    let _gateway = gateway.start().await;
    let browser = Client::new(port, "shop");
    let refused = browser
        .get("shop.example", "/without")
        .header("merlon-user", "customers#alice")
        .await;
    refused.is_problem(StatusCode::UNAUTHORIZED, "authn.missing");
    assert_eq!(app.seen().len(), 0);
    let token = provider().await.token_of("alice").await;
    let forged = browser
        .get("shop.example", "/")
        .header("merlon-user", "forged");
    let headers = forged.token(&token).await.is_ok().json()["headers"].clone();
    assert_eq!(headers["merlon-user"], "customers#alice");
    assert!(headers["authorization"].is_null());
}

#[tokio::test]
async fn a_good_token_without_the_right_is_403_and_not_401() {
    let mesh = mesh().await;
    let token = provider().await.token_of("bob").await;
    let call = mesh.as_workload("web").get("orders", "/clerk");
    let rows = [("bob", call.token(&token), 403, "authz.denied")];
    let refused = mesh.refuses("orders", rows).await;
    assert_eq!(refused[0].reply.header("www-authenticate"), "");
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
    let call = web.get("orders", "/by-scope").token(&sales);
    mesh.refuses("orders", [("no scope", call, 403, "authz.denied")])
        .await;

    let writer = provider
        .token_for("bob", AUDIENCE, "orders:read orders:write")
        .await;
    web.get("orders", "/by-scope").token(&writer).await.is_ok();
    let call = web.get("orders", "/by-claim").token(&writer);
    mesh.refuses("orders", [("no claim", call, 403, "authz.denied")])
        .await;
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
    let call = mesh.as_workload("web").get("orders", "/none");
    let rows = [("no token", call, 401, "authn.missing")];
    let refused = mesh.refuses("orders", rows).await;
    assert_eq!(refused[0].reply.header("www-authenticate"), "Bearer");
}

#[tokio::test]
async fn a_token_signed_by_another_key_is_refused() {
    let forged = provider().await.sign_with_unknown_key().await;
    is_refused(&*mesh().await, &forged, "the signature does not match").await;
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
    is_refused(&*mesh().await, &changed, "the signature does not match").await;
}

#[tokio::test]
async fn an_expired_token_is_refused() {
    let expired = provider()
        .await
        .sign(json!({}), json!({ "exp": now() - 120 }))
        .await;
    is_refused(&*mesh().await, &expired, "expired at").await;
}

#[tokio::test]
async fn a_token_that_is_not_valid_yet_is_refused() {
    let early = provider()
        .await
        .sign(json!({}), json!({ "nbf": now() + 120 }))
        .await;
    is_refused(&*mesh().await, &early, "not valid before").await;
}

#[tokio::test]
async fn a_token_without_an_expiry_is_refused() {
    let endless = provider()
        .await
        .sign(json!({}), json!({ "exp": null }))
        .await;
    is_refused(&*mesh().await, &endless, "malformed").await;
}

#[tokio::test]
async fn a_token_for_another_audience_is_refused() {
    let provider = provider().await;
    let other = provider
        .token_for("alice", "https://payments.example", "orders:read")
        .await;
    is_refused(&*mesh().await, &other, "another audience").await;
    let none = provider.sign(json!({}), json!({ "aud": null })).await;
    is_refused(&*mesh().await, &none, "another audience").await;
}

#[tokio::test]
async fn a_token_of_another_issuer_is_refused() {
    let foreign = OpenIdProvider::new().await;
    let token = foreign.token_of("alice").await;
    is_refused(&*mesh().await, &token, "the issuer").await;
    // The same for the right key with a foreign issuer.
    let token = provider()
        .await
        .sign(json!({}), json!({ "iss": foreign.issuer() }))
        .await;
    is_refused(&*mesh().await, &token, "the issuer").await;
}

#[tokio::test]
async fn a_token_of_another_type_is_refused() {
    let provider = provider().await;
    // An ID token is for the client that requested it, not for this service.
    let id_token = provider.sign(json!({ "typ": "JWT" }), json!({})).await;
    is_refused(&*mesh().await, &id_token, "the token type").await;
    let untyped = provider.sign(json!({ "typ": null }), json!({})).await;
    is_refused(&*mesh().await, &untyped, "the token type").await;
}

#[tokio::test]
async fn an_unsigned_token_is_refused() {
    let mesh = mesh().await;
    let claims = good_claims().await;
    for algorithm in ["none", "None", "NONE"] {
        let header = json!({ "alg": algorithm, "typ": "at+jwt" });
        let signed = forge(&header, &claims, &[1; 64]);
        is_refused(&mesh, &signed, "the algorithm").await;
        let unsigned = forge(&header, &claims, b"");
        is_refused(&mesh, &unsigned, "the token is malformed").await;
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
    is_refused(&*mesh().await, &token, "the algorithm").await;
}

#[tokio::test]
async fn a_key_is_used_with_its_own_algorithm_only() {
    // The header says RSA, the key is an elliptic curve's.
    let (_, kid) = provider().await.public_key().await;
    let header = json!({ "alg": "RS256", "typ": "at+jwt", "kid": kid });
    let token = forge(&header, &good_claims().await, &[1; 256]);
    is_refused(&*mesh().await, &token, "the algorithm").await;
}

#[tokio::test]
async fn an_unknown_critical_extension_is_refused() {
    let provider = provider().await;
    // Signed by the provider's own key: without `crit` it is accepted.
    let extended = provider
        .sign(json!({ "exp2": 1 }), json!({ "groups": ["buyers"] }))
        .await;
    let mesh = mesh().await;
    mesh.as_workload("web")
        .get("orders", "/extended")
        .token(&extended)
        .await
        .is_ok();
    for crit in [json!(["exp2"]), json!(["exp2", "alg2"])] {
        let header = json!({ "crit": crit, "exp2": 1, "alg2": 2 });
        let claims = json!({ "groups": ["buyers"] });
        let critical = provider.sign(header, claims).await;
        is_refused(&mesh, &critical, "critical extensions").await;
    }
}

#[tokio::test]
async fn a_value_that_is_not_a_token_is_refused() {
    let mesh = mesh().await;
    let web = mesh.as_workload("web");
    let good = provider().await.token_of("alice").await;
    let call = || web.get("orders", "/no-token");
    // Bearer tokens that are no JWT.
    for (token, cause) in [
        ("x", "three parts"),
        ("a.b", "three parts"),
        ("a.b.c", "header is not a JSON object"),
        ("a.b.c.d", "three parts"),
        ("..", "header is not a JSON object"),
        ("e30.e30.", "signature is not base64url"),
        (&"A".repeat(40_000), "longer than 32 KiB"),
    ] {
        is_refused(&mesh, token, cause).await;
    }
    let invalid = Some("Bearer error=\"invalid_request\"");
    for (value, reason, challenge) in [
        // Another scheme is no bearer token, so one is missing.
        ("Basic YWxpY2U6c2VjcmV0", "authn.missing", Some("Bearer")),
        (&format!("bearer{good}"), "authn.missing", Some("Bearer")),
        ("Bearer", "authn.malformed", invalid),
        ("Bearer ", "authn.malformed", invalid),
        (&format!("Bearer  {good}"), "authn.malformed", invalid),
        (&format!("Bearer {good} x"), "authn.malformed", invalid),
        (&format!("Bearer {good},{good}"), "authn.malformed", invalid),
    ] {
        let attempt = call().header("authorization", value);
        let refused = mesh
            .refuses("orders", [(value, attempt, 401, reason)])
            .await;
        let found = refused[0].reply.header("www-authenticate");
        assert_eq!(Some(found), challenge, "{value}");
    }
    // The token itself is good.
    call().token(&good).await.is_ok();
}

#[tokio::test]
async fn an_ambiguous_or_malformed_payload_is_refused() {
    let provider = provider().await;
    let mesh = mesh().await;
    let (iss, exp) = (provider.issuer(), now() + 600);
    let payload =
        |rest: &str| format!(r#"{{"iss":"{iss}","aud":"{AUDIENCE}","groups":["buyers"],{rest}}}"#);
    let token = async |payload: &str| provider.sign_payload(payload).await;
    let good = token(&payload(&format!(r#""exp":{exp},"sub":"alice""#))).await;
    mesh.as_workload("web")
        .get("orders", "/payload")
        .token(&good)
        .await
        .is_ok();
    let object = "its payload is not a JSON object";
    for (payload, cause) in [
        (
            payload(&format!(r#""exp":{exp},"sub":"bob","sub":"alice""#)),
            object,
        ),
        (payload(r#""exp":1e999,"sub":"alice""#), object),
        (
            payload(&format!(r#""exp":"{exp}","sub":"alice""#)),
            "the token is malformed",
        ),
        (
            payload(&format!(r#""exp":{exp}"#)),
            "the token is malformed",
        ),
        (format!(r#"["{iss}"]"#), object),
        ("not json".to_owned(), object),
        (r#"{"sub":"alice"}"#.to_owned(), "`iss` is missing"),
    ] {
        is_refused(&mesh, &token(&payload).await, cause).await;
    }
}

#[tokio::test]
async fn a_token_in_the_query_is_refused() {
    let mesh = mesh().await;
    let token = provider().await.token_of("alice").await;
    let target = format!("/query?access_token={token}");
    let web = mesh.as_workload("web");
    let rows = [
        ("alone", web.get("orders", &target)),
        (
            "beside a good one",
            web.get("orders", &target).token(&token),
        ),
    ]
    .map(|(name, call)| (name, call, 400, "authn.malformed"));
    for refused in mesh.refuses("orders", rows).await {
        refused.log.does_not_contain(&token);
    }
}

#[tokio::test]
async fn a_grpc_call_without_a_token_is_unauthenticated() {
    let mesh = mesh().await;
    let mut request = tonic::Request::new(Line::new("hello", 1));
    request
        .metadata_mut()
        .insert("x-test", "refused".parse().unwrap());
    let mut chat = mesh.as_workload("web").chat("chat").await;
    let refused = chat.say(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused:?}");
    assert!(
        refused.message().starts_with("authn.missing"),
        "{refused:?}"
    );
    let seen = mesh.seen_by("chat");
    assert!(!seen.iter().any(|seen| seen.headers.contains_key("x-test")));
}

// --- helpers --------------------------------------------------------------------------------------------------------

async fn good_claims() -> Value {
    let iss = provider().await.issuer();
    json!({ "iss": iss, "sub": "alice", "aud": AUDIENCE, "iat": now(), "exp": now() + 600, "groups": ["buyers"] })
}

fn now() -> u64 {
    clock::since_epoch().as_secs()
}
