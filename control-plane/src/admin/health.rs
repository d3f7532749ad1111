//! `/live`, `/ready` and `/metrics`, for probes and monitoring. This listener exposes nothing else.

use axum::{
    Router,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use merlon_net::http;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::{
    cluster::watch::Contact, issuance::authority::Authority, limits::AdminLimits,
    telemetry::metrics::Metrics,
};

/// Whether proxies can be served.
#[derive(Debug, Clone)]
pub(crate) struct Health {
    pub(crate) authority: Authority,
    /// With a directory of files it is always complete.
    pub(crate) contact: Contact,
    pub(crate) shutdown: CancellationToken,
}

impl Health {
    /// Why proxies cannot be served; `None` if they can.
    pub(crate) fn reason(&self) -> Option<String> {
        if self.shutdown.is_cancelled() {
            return Some("shutting down".to_owned());
        }
        if let Some(reason) = self.contact.not_ready() {
            return Some(reason);
        }
        if self.authority.certified().is_some() {
            return None;
        }
        let problem = self.authority.problem();
        Some(problem.unwrap_or_else(|| "the certificate issuer has not answered yet".to_owned()))
    }
}

/// A control plane that has lost its cluster still serves the last known state, and reports that.
fn ready_text(health: &Health) -> String {
    match (health.contact.outage(), health.contact.problem()) {
        (None, None) => "ready\n".to_owned(),
        (None, Some(why)) => format!("ready, although {why}\n"),
        (Some((since, why)), _) => {
            format!("ready, with the state of {since}: the cluster does not answer: {why}\n")
        }
    }
}

/// Serves until `shutdown`.
pub(crate) async fn serve(
    listener: TcpListener,
    limits: AdminLimits,
    health: Health,
    metrics: Metrics,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let ready = async move || match health.reason() {
        None => (StatusCode::OK, ready_text(&health)),
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
    let routes = |_: &TcpStream| routes.clone();
    let ended = shutdown.cancelled_owned();
    http::serve(listener, limits.connections(), routes, ended).await;
    Ok(())
}
