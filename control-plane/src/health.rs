//! `/live`, `/ready` and `/metrics`, for whoever runs the process. Nothing else is told here.

use axum::{
    Router,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{authority::Authority, metrics::Metrics};

/// Whether proxies can be served.
#[derive(Debug, Clone)]
pub(crate) struct Health {
    pub(crate) authority: Authority,
    pub(crate) shutdown: CancellationToken,
}

impl Health {
    /// Why proxies cannot be served; `None`: they can.
    pub(crate) fn reason(&self) -> Option<String> {
        if self.shutdown.is_cancelled() {
            return Some("shutting down".to_owned());
        }
        if self.authority.certified().is_some() {
            return None;
        }
        let problem = self.authority.problem();
        Some(problem.unwrap_or_else(|| "the certificate issuer has not answered yet".to_owned()))
    }
}

/// Answers until `shutdown`.
pub(crate) async fn serve(
    listener: TcpListener,
    health: Health,
    metrics: Metrics,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let ready = async move || match health.reason() {
        None => (StatusCode::OK, "ready\n".to_owned()),
        Some(reason) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("not ready: {reason}\n"),
        ),
    };
    let page = async move || {
        let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        ([(header::CONTENT_TYPE, kind)], metrics.text()).into_response()
    };
    let routes = Router::new()
        .route("/live", get(async || "live\n"))
        .route("/ready", get(ready))
        .route("/metrics", get(page));
    axum::serve(listener, routes)
        .with_graceful_shutdown(shutdown.cancelled_owned())
        .await
}
