//! What ends or is due at a time of day: certificates, tokens, join tokens, last good keys. The tests set the clock of the
//! mesh's processes; that of the token issuer and of the tests themselves is the machine's.

use std::time::Duration;

use http::StatusCode;
use merlon_certs::PrivateKey;
use merlon_config::clock;
use merlon_tests::{
    Mesh, eventually,
    mesh::{LogLine, MeshBuilder, identity, spiffe_id},
    openid::OpenIdProvider,
    refusals::Refusals,
    until,
    wait::until_value,
};
use serde_json::{Value, json};
use tonic::Code;

const fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(60 * minutes)
}

const fn hours(hours: u64) -> Duration {
    minutes(60 * hours)
}

/// `web` may call `orders`. All processes have a clock that the test sets, and look at it often.
fn orders() -> MeshBuilder {
    Mesh::new()
        .service("orders")
        .allow("web", "GET", "/**")
        .clock()
        .limits("clockCheck: 50ms")
        .control_plane_limits("issuance: { clockCheck: 50ms }")
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

/// A line of the process log of the proxy of `workload`.
fn process_log_has(mesh: &Mesh, workload: &str, event: &str) -> bool {
    let lines = LogLine::all(&mesh.sidecar(workload).process_log());
    lines.iter().any(|line| line.text("event") == event)
}

// --- certificates ---------------------------------------------------------------------------------------------------

/// After a call, kills the control plane of `mesh` and sets the clock to an hour after the end of its certificates, which live 24 hours.
async fn outlive_certificates(mesh: &Mesh) {
    mesh.as_workload("web").get("orders", "/").await.is_ok();
    mesh.control_plane().kill9();
    mesh.clock().forward(hours(25)).await;
    for workload in ["orders", "web"] {
        mesh.sidecar(workload).until_unready("tls.expired").await;
        assert!(process_log_has(mesh, workload, "identity.expired"));
    }
    let call = mesh.as_workload("web").get("orders", "/expired");
    Refusals::by(mesh.sidecar("web"), mesh.app("orders"))
        .each([("expired", call, 503, "config.unavailable")])
        .await;
}

#[tokio::test]
async fn with_expired_certificates_calls_are_refused_until_the_control_plane_certifies_the_proxies_again()
 {
    let mesh = orders().start().await;
    outlive_certificates(&mesh).await;

    mesh.control_plane().start().await;
    for workload in ["orders", "web"] {
        mesh.sidecar(workload).kill9();
        mesh.join(workload).await;
    }
    mesh.as_workload("web")
        .get("orders", "/again")
        .await
        .is_ok();
}

#[tokio::test]
async fn certificates_that_expired_by_a_wrong_clock_are_in_force_again_when_the_clock_is_right() {
    let mesh = orders().start().await;
    outlive_certificates(&mesh).await;

    mesh.clock().backward(hours(25)).await;
    for workload in ["orders", "web"] {
        mesh.sidecar(workload).until_ready().await;
    }
    mesh.as_workload("web")
        .get("orders", "/again")
        .await
        .is_ok();
}

/// Sets the clock forward, and waits until all certificates of `mesh` were issued after that.
async fn renew_by_a_jump(mesh: &Mesh, jump: Duration) {
    let ends = async || {
        let own = "merlon_certificate_expiry_timestamp_seconds";
        let name = "merlon_certificate_expiration_timestamp_seconds";
        [
            mesh.control_plane().metric(own, "").await,
            mesh.sidecar("orders").metric(name, "").await,
            mesh.sidecar("web").metric(name, "").await,
        ]
    };
    let wanted = ends().await.map(|end| end + jump.as_secs_f64());
    mesh.clock().forward(jump).await;
    until_value("all certificates are new", ends, |ends| {
        ends.iter().zip(wanted).all(|(end, wanted)| *end >= wanted)
    })
    .await;
}

#[tokio::test]
async fn after_a_clock_that_was_ahead_is_corrected_proxies_are_certified_again() {
    let mesh = orders().start().await;
    renew_by_a_jump(&mesh, hours(14)).await;
    // No certificate is valid yet, not even that of the control plane.
    mesh.clock().backward(hours(14)).await;
    for workload in ["orders", "web"] {
        mesh.sidecar(workload).kill9();
        mesh.join(workload).await;
    }
    mesh.as_workload("web").get("orders", "/").await.is_ok();
}

#[tokio::test]
async fn proxies_with_certificates_that_are_not_valid_yet_are_unready_until_the_clock_is_right_even_if_they_restart()
 {
    let mesh = orders().start().await;
    renew_by_a_jump(&mesh, hours(14)).await;
    let failed = [("result", "failed")];
    let failed = mesh
        .metric("web", "merlon_certificate_requests_total", &failed)
        .await;
    let before = failed.value().await;
    mesh.clock().backward(hours(14)).await;
    let early = async || {
        for workload in ["orders", "web"] {
            until("the proxy notices", async || {
                process_log_has(&mesh, workload, "identity.not_yet_valid")
            })
            .await;
            mesh.sidecar(workload)
                .until_unready("tls.not_yet_valid")
                .await;
        }
    };
    early().await;
    // It requests another certificate, without success: the control plane has the same clock, and refuses the one in force.
    eventually!(failed.value().await, matches value if *value > before);
    mesh.sidecar("orders").kill9();
    mesh.sidecar("orders").launch();
    early().await;

    mesh.clock().forward(hours(14)).await;
    for workload in ["orders", "web"] {
        mesh.sidecar(workload).until_ready().await;
    }
    mesh.as_workload("web").get("orders", "/").await.is_ok();
}

#[tokio::test]
async fn a_certificate_that_expired_by_a_wrong_clock_at_a_restart_is_in_force_once_the_clock_is_right()
 {
    let mesh = orders().start().await;
    mesh.as_workload("web").get("orders", "/").await.is_ok();
    mesh.control_plane().kill9();
    mesh.sidecar("orders").kill9();
    mesh.clock().forward(hours(25)).await;
    mesh.sidecar("orders").launch();
    let log = || process_log_has(&mesh, "orders", "identity.not_restored");
    until("the expired certificate is read", async || log()).await;
    mesh.sidecar("orders")
        .until_unready("tls.no_identity")
        .await;

    mesh.clock().backward(hours(25)).await;
    mesh.sidecar("orders").until_ready().await;
    mesh.sidecar("web").until_ready().await;
    mesh.as_workload("web").get("orders", "/").await.is_ok();
}

#[tokio::test]
async fn when_the_clock_jumps_past_a_renewal_every_certificate_is_renewed_and_none_expires() {
    let mesh = orders()
        .mesh("  certificates: { lifetime: 1h }\n")
        .start()
        .await;
    let web = mesh.as_workload("web");
    web.get("orders", "/").await.is_ok();
    // Renewals are due after 27 to 33 minutes.
    for path in ["/first", "/second"] {
        renew_by_a_jump(&mesh, minutes(40)).await;
        web.get("orders", path).await.is_ok();
    }
    for workload in ["orders", "web"] {
        assert!(!process_log_has(&mesh, workload, "identity.expired"));
    }
}

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

#[tokio::test]
async fn the_last_good_keys_of_an_issuer_end_24_hours_after_the_last_fetch() {
    let provider = OpenIdProvider::new().await;
    let mesh = orders_with_tokens(&provider).await;
    let web = mesh.as_workload("web");
    let mut tokens = Vec::new();
    for _ in 0..3 {
        let exp = json!({ "exp": now() + 7 * 24 * 3_600 });
        tokens.push(provider.sign(json!({}), exp).await);
    }
    web.get("orders", "/").token(&tokens[0]).await.is_ok();

    provider.set_mode("down").await;
    let failed = [("result", "failed")];
    let failed = mesh
        .metric("orders", "merlon_jwks_fetches_total", &failed)
        .await;
    mesh.clock().forward(hours(23)).await;
    eventually!(failed.value().await, matches value if *value >= 1.0);
    assert!(process_log_has(&mesh, "orders", "jwks.fetch_failed"));
    web.get("orders", "/").token(&tokens[1]).await.is_ok();

    mesh.clock().forward(hours(2)).await;
    until("the keys are dropped", async || {
        let reply = web.get("orders", "/late").token(&tokens[2]).await;
        reply.status != StatusCode::OK
    })
    .await;
    let late = |token| web.get("orders", "/late").token(token);
    // A token that was verified with them is refused too.
    let rows = [("new", late(&tokens[2])), ("cached", late(&tokens[1]))];
    let rows = rows.map(|(name, call)| (name, call, 503, "authn.keys_unavailable"));
    mesh.refuses("orders", rows).await;

    provider.set_mode("ok").await;
    until("the keys are fetched again", async || {
        let reply = web.get("orders", "/").token(&tokens[2]).await;
        reply.status == StatusCode::OK
    })
    .await;
}
