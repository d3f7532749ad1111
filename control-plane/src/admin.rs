//! Administration over a Unix socket. The file permissions decide who has access.

mod decision;
pub(crate) mod health;
mod problem;
mod socket;
mod state;

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, Query, State},
    http::StatusCode,
    routing::{get, post},
};
use jiff::Timestamp;
use merlon_api::{
    JoinToken,
    inspection::{Ask, DumpAsk, Reply, RotateAsk},
};
use merlon_config::{
    clock,
    name::{SpiffeId, WorkloadId},
    unit::HumanDuration,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use crate::{
    issuance::{
        join_token::{DEFAULT_TTL, MAX_TTL},
        ledger::Issued,
    },
    push::ProxyStatus,
    random,
    transport::peer::timestamp,
};

pub(crate) use problem::Problem;
pub(crate) use socket::bind;
pub(crate) use state::Admin;

/// The maximum size of a request body.
const MAX_BODY_BYTES: usize = 64 << 10;

/// Serves until `shutdown`.
pub(crate) async fn serve(
    listener: UnixListener,
    admin: Admin,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let routes = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/proxies", get(proxies))
        .route("/v1/proxies/{id}", get(proxy))
        .route("/v1/proxies/{id}/config", get(proxy_config))
        .route("/v1/proxies/{id}/rotate", post(rotate))
        .route("/v1/decisions/{id}", get(decision::decision))
        .route("/v1/join-tokens", post(join_token))
        .route("/v1/certificates", get(certificates))
        .fallback(async || Problem::new(StatusCode::NOT_FOUND, "no such path"))
        .method_not_allowed_fallback(async || {
            Problem::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "this path does not allow this method",
            )
        })
        .layer(axum::extract::DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(admin);
    axum::serve(listener, routes)
        .with_graceful_shutdown(shutdown.cancelled_owned())
        .await
}

async fn status(State(admin): State<Admin>) -> Json<Value> {
    let source = admin.source.lock().clone();
    let mesh = admin.snapshots.mesh();
    let certified = admin.authority.certified();
    let list = admin.registry.list();
    let count = |state: &str| list.iter().filter(|proxy| proxy.state == state).count();
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "ready": admin.health.reason().is_none(),
        "notReadyReason": admin.health.reason(),
        "trustDomain": mesh.state().trust_domain,
        "source": source,
        "clusterAway": admin.health.contact.outage().map(|(since, why)| json!({ "since": since, "why": why })),
        "services": mesh.destination_names().count(),
        "workloads": mesh.proxies().count(),
        "issuer": {
            "description": certified.as_ref().map(|c| c.issuer().describe()),
            "problem": admin.authority.problem(),
        },
        "certificate": certified.as_ref().map(|c| json!({
            "serial": c.serial,
            "notAfter": timestamp(c.not_after),
        })),
        "proxies": {
            "acknowledged": count("acknowledged"),
            "pending": count("pending"),
            "refused": count("refused"),
            "disconnected": count("disconnected"),
        },
    }))
}

async fn proxies(State(admin): State<Admin>) -> Json<Vec<ProxyStatus>> {
    Json(admin.registry.list())
}

async fn proxy(
    State(admin): State<Admin>,
    Path(id): Path<String>,
) -> Result<Json<ProxyStatus>, Problem> {
    Ok(Json(admin.find(&id)?))
}

async fn proxy_config(
    State(admin): State<Admin>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Problem> {
    let proxy = admin.find(&id)?;
    match admin.registry.ask(&proxy, Ask::Dump(DumpAsk {})).await? {
        Reply::Dump(dump) => Ok(Json(problem::json_of(&dump.json)?)),
        _ => Err(problem::wrong_reply(&proxy.id)),
    }
}

/// A certificate that was replaced.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Rotated {
    old_serial: String,
    new_serial: String,
}

async fn rotate(
    State(admin): State<Admin>,
    Path(id): Path<String>,
) -> Result<Json<Rotated>, Problem> {
    let proxy = admin.find(&id)?;
    match admin
        .registry
        .ask(&proxy, Ask::Rotate(RotateAsk {}))
        .await?
    {
        Reply::Rotated(reply) => Ok(Json(Rotated {
            old_serial: reply.old_serial,
            new_serial: reply.new_serial,
        })),
        _ => Err(problem::wrong_reply(&proxy.id)),
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TokenRequest {
    /// `shop/orders`, or a whole SPIFFE ID.
    identity: String,
    /// At most `10m`, which is the default.
    ttl: Option<HumanDuration>,
}

/// A new token. It is returned only once.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NewToken {
    token: String,
    identity: SpiffeId,
    expires_at: Timestamp,
}

async fn join_token(State(admin): State<Admin>, body: Bytes) -> Result<Json<NewToken>, Problem> {
    let bad = |message: String| Problem::new(StatusCode::BAD_REQUEST, message);
    let request: TokenRequest = serde_json::from_slice(&body).map_err(|error| {
        bad(format!("the body is not a token request: {error}"))
            .hint("send `{\"identity\": \"shop/orders\", \"ttl\": \"10m\"}`")
    })?;
    let ttl = request.ttl.map_or(DEFAULT_TTL, |ttl| ttl.0);
    if ttl < std::time::Duration::from_secs(1) || ttl > MAX_TTL {
        return Err(bad(format!(
            "`ttl` must be from 1s to {}, not {}",
            HumanDuration(MAX_TTL),
            HumanDuration(ttl)
        )));
    }
    let mesh = admin.snapshots.mesh();
    let domain = &mesh.state().trust_domain;
    let identity: SpiffeId = if request.identity.starts_with("spiffe:") {
        request
            .identity
            .parse()
            .map_err(|error| bad(format!("`identity`: {error}")))?
    } else {
        let workload: WorkloadId = request
            .identity
            .parse()
            .map_err(|error| bad(format!("`identity`: {error}")))?;
        domain.spiffe_id(&workload)
    };
    if !mesh.knows(&identity) {
        let message = format!("no Workload or Gateway of the mesh runs as `{identity}`");
        return Err(Problem::new(StatusCode::NOT_FOUND, message).hint(
            "create the Workload or the Gateway first: without it, the certificate request is rejected",
        ));
    }
    let certified = admin.authority.certified().ok_or_else(|| {
        let reason = admin.health.reason().unwrap_or_default();
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("there is no root certificate to pin yet: {reason}"),
        )
    })?;
    let secret = random::secret().map_err(|_| {
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "the system random number generator failed",
        )
    })?;
    let token = JoinToken::new(domain.clone(), secret, certified.root());
    let expires_at = admin
        .tokens
        .add(&token, &identity, clock::now(), ttl)
        .await?;
    tracing::info!(identity = %identity, expires_at = %expires_at, "join_token.created");
    Ok(Json(NewToken {
        token: token.reveal(),
        identity,
        expires_at,
    }))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct LedgerQuery {
    /// A SPIFFE ID.
    identity: Option<String>,
    /// 1–1,000; default 100.
    limit: Option<u32>,
}

async fn certificates(
    State(admin): State<Admin>,
    query: Result<Query<LedgerQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Vec<Issued>>, Problem> {
    let Query(query) =
        query.map_err(|error| Problem::new(StatusCode::BAD_REQUEST, error.body_text()))?;
    let limit = query.limit.unwrap_or(100).clamp(1, 1_000);
    Ok(Json(admin.ledger.newest(query.identity, limit).await?))
}
