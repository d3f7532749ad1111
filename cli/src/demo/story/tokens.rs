//! Tokens that must be refused, each for another reason.

use super::{
    super::{
        issuer::CURRENT,
        mesh::Mesh,
        report::Outcome,
        token::Claims,
        wire::{self, request, text_at},
    },
    calls::{self, ORDERS, Traced, reason},
};
use crate::failure::Failure;

pub(super) async fn none(mesh: &Mesh<'_>) -> Result<Outcome, Failure> {
    refused(mesh, None, "Bearer").await
}

/// With the key id of a published key, but signed by another key.
pub(super) async fn forged(mesh: &Mesh<'_>) -> Result<Outcome, Failure> {
    let token = claims(mesh).signed_by(&mesh.forger)?;
    refused(mesh, Some(&token), INVALID).await
}

pub(super) async fn expired(mesh: &Mesh<'_>) -> Result<Outcome, Failure> {
    let token = mesh.token("alice", "orders", -120).await?;
    refused(mesh, Some(&token), INVALID).await
}

pub(super) async fn wrong_audience(mesh: &Mesh<'_>) -> Result<Outcome, Failure> {
    let token = mesh.token("alice", "payments", 3_600).await?;
    refused(mesh, Some(&token), INVALID).await
}

pub(super) async fn public_key_as_secret(mesh: &Mesh<'_>) -> Result<Outcome, Failure> {
    let reply = wire::send(mesh.issuer, request("GET", "issuer", "/jwks", None, None)).await;
    let keys = reply.map_err(|error| Failure::runtime(format!("the token issuer: {error}")))?;
    let public = text_at(&keys.json(), "/keys/0");
    let token = claims(mesh).keyed_with_public_key(CURRENT, public.as_bytes());
    refused(mesh, Some(&token), INVALID).await
}

pub(super) async fn algorithm_none(mesh: &Mesh<'_>) -> Result<Outcome, Failure> {
    let token = claims(mesh).with_algorithm_none();
    refused(mesh, Some(&token), INVALID).await
}

const INVALID: &str = "Bearer error=\"invalid_token\"";

fn claims(mesh: &Mesh<'_>) -> Claims {
    Claims {
        issuer: format!("http://{}", mesh.issuer),
        subject: "alice".to_owned(),
        audience: "orders".to_owned(),
        scope: "orders:read orders:write".to_owned(),
        expires_in: 3_600,
    }
}

/// Requests an order that Alice may read; the response must be 401 (RFC 6750 §3).
async fn refused(
    mesh: &Mesh<'_>,
    token: Option<&str>,
    challenge: &str,
) -> Result<Outcome, Failure> {
    let mut outcome = Outcome::expecting(format!(
        "401 with `{challenge}`; the program receives nothing"
    ));
    let before = mesh.orders.requests().await?;
    let request = request("GET", ORDERS, "/orders/7", token, None);
    let Traced { reply, trace } = calls::call(mesh, &mesh.web, request).await?;
    let seen = mesh.orders.requests().await?.saturating_sub(before);
    let sent = reply.header("www-authenticate").to_owned();
    outcome.observed(format!(
        "{} {}, `{sent}`",
        reply.status,
        reason(reply.status)
    ));
    outcome.must(reply.status == 401, || {
        format!("orders answered {} {}", reply.status, reply.json())
    });
    outcome.must(sent == challenge, || {
        format!("WWW-Authenticate is `{sent}`")
    });
    outcome.must(seen == 0, || {
        "the program orders received the request".to_owned()
    });
    let line = trace.inbound(&mesh.orders).await;
    let cause = text_at(&line, "/cause");
    outcome.must(text_at(&line, "/status") == "401", || {
        format!("the sidecar of orders logged {line}")
    });
    if cause.is_empty() {
        outcome.note(reply.text("/detail"));
    } else {
        outcome.note(format!(
            "detail in the response:  {}",
            reply.text("/detail")
        ));
        outcome.note(format!("cause in the access log: {cause}"));
    }
    outcome.fact("www_authenticate", sent);
    outcome.fact("reason", reply.text("/reason"));
    outcome.fact("cause", cause);
    Ok(outcome)
}
