//! `/live`, `/ready` and `/metrics` for whoever watches; the dump and decisions for whoever may open the Unix socket.

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

/// Serves who watches, until the process ends: also while it drains, so that the end can be seen.
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

/// Serves who may open the socket at `path`: the owner of the process.
pub(crate) async fn serve_socket(path: &Path, shared: Arc<Shared>, metrics: Arc<Metrics>) {
    let listener = match bind(path) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "admin.socket_failed");
            return;
        }
    };
    let seen = AdminState { shared, metrics };
    let routes = public(seen.clone()).merge(private(seen));
    if let Err(error) = axum::serve(listener, routes).await {
        tracing::error!(%error, "admin.failed");
    }
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    // Left behind by a process that was killed; another living one holds the lock of the state directory.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn public(seen: AdminState) -> Router {
    Router::new()
        .route("/live", get(|| async { Json(json!({ "live": true })) }))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .with_state(seen)
}

fn private(seen: AdminState) -> Router {
    Router::new()
        .route("/config", get(config))
        .route("/decisions/{id}", get(decision))
        .with_state(seen)
}

async fn ready(State(seen): State<AdminState>) -> Response {
    let reasons = seen.shared.readiness.reasons();
    let status = if reasons.is_empty() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let body = json!({ "ready": reasons.is_empty(), "reasons": reasons });
    (status, Json(body)).into_response()
}

async fn metrics(State(seen): State<AdminState>) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], seen.metrics.page())
}

async fn config(State(seen): State<AdminState>) -> impl IntoResponse {
    Json(dump::dump(&seen.shared))
}

async fn decision(State(seen): State<AdminState>, UrlPath(id): UrlPath<String>) -> Response {
    let wrong = |status: StatusCode, message: String| {
        (status, Json(json!({ "error": message }))).into_response()
    };
    match id.parse::<DecisionId>() {
        Err(error) => wrong(StatusCode::BAD_REQUEST, error.to_string()),
        Ok(id) => match seen.shared.decisions.find(id) {
            Some(found) => Json(&*found).into_response(),
            None => wrong(
                StatusCode::NOT_FOUND,
                format!("`{id}` is not (or no longer) remembered"),
            ),
        },
    }
}
