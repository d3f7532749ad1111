//! `/live`, `/ready` and `/metrics` on a TCP listener; also the dump and decisions on a Unix socket.

use std::{fs, io, os::unix::fs::PermissionsExt, path::Path, sync::Arc};

use axum::{
    Json, Router,
    extract::{Path as UrlPath, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use merlon_net::http::{self, Limits};
use serde_json::json;
use tokio::net::{TcpListener, UnixListener};

use super::dump;
use crate::{
    state::shared::Shared,
    telemetry::{decision_log::DecisionId, metrics::Metrics},
};

#[derive(Debug, Clone)]
struct AdminState {
    shared: Arc<Shared>,
    metrics: Arc<Metrics>,
}

/// Serves the TCP listener until the process ends, also during the drain, so that the shutdown can be observed.
pub(crate) async fn serve(listener: TcpListener, shared: Arc<Shared>, metrics: Arc<Metrics>) {
    let routes = public(AdminState { shared, metrics });
    http::serve(
        listener,
        Limits::default(),
        |_| routes.clone(),
        std::future::pending(),
    )
    .await;
}

/// Serves the Unix socket at `path`, which only the owner of the process can open.
pub(crate) async fn serve_socket(path: &Path, shared: Arc<Shared>, metrics: Arc<Metrics>) {
    let listener = match bind(path) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "admin.socket_failed");
            return;
        }
    };
    let state = AdminState { shared, metrics };
    let routes = public(state.clone()).merge(private(state));
    if let Err(error) = axum::serve(listener, routes).await {
        tracing::error!(%error, "admin.failed");
    }
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    // A killed process leaves its socket behind. A running one would hold the lock of the state directory.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn public(state: AdminState) -> Router {
    Router::new()
        .route("/live", get(|| async { Json(json!({ "live": true })) }))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .with_state(state)
}

fn private(state: AdminState) -> Router {
    Router::new()
        .route("/config", get(config))
        .route("/decisions/{id}", get(decision))
        .with_state(state)
}

async fn ready(State(state): State<AdminState>) -> Response {
    let reasons = state.shared.readiness.reasons();
    let status = if reasons.is_empty() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let body = json!({ "ready": reasons.is_empty(), "reasons": reasons });
    (status, Json(body)).into_response()
}

async fn metrics(State(state): State<AdminState>) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], state.metrics.page())
}

async fn config(State(state): State<AdminState>) -> impl IntoResponse {
    Json(dump::dump(&state.shared))
}

async fn decision(State(state): State<AdminState>, UrlPath(id): UrlPath<String>) -> Response {
    let wrong = |status: StatusCode, message: String| {
        (status, Json(json!({ "error": message }))).into_response()
    };
    match id.parse::<DecisionId>() {
        Err(error) => wrong(StatusCode::BAD_REQUEST, error.to_string()),
        Ok(id) => match state.shared.decisions.find(id) {
            Some(found) => Json(&*found).into_response(),
            None => wrong(
                StatusCode::NOT_FOUND,
                format!("the decision `{id}` is not recorded (any more)"),
            ),
        },
    }
}
