//! The kubelet's probes of the program. With interception, probes of the kubelet itself would end at this proxy: a TCP probe
//! would pass while the program is dead, and an HTTP probe has no mesh identity. So the kubelet probes this listener, which
//! makes the same probe to the program.
//!
//! Every client that reaches the pod reaches this listener. It makes only the probes of the pod's specification, accepts
//! only GET and HEAD, and responds with the result and a reason of one line. A lifecycle hook changes the program's state, so
//! its path ends in a key that only the pod's specification contains.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use axum::{
    Extension, Router,
    extract::{Request, State},
    http::{Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use merlon_config::probe::{HookKey, Probe, Probes};
use merlon_net::http::{self, Limits};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

use self::client::ProbeClient;
use crate::telemetry::metrics::{FetchResult, Metrics};

/// How many requests of one probe run at the same time. The kubelet makes one; other clients wait. Every probe has its own
/// limit, so that a slow one does not delay others.
const CONCURRENT: usize = 8;
/// Maximum length of a reason in characters, since it may contain text of the program.
const REASON_LENGTH: usize = 256;

#[derive(Clone)]
struct Listener {
    probes: Arc<BTreeMap<String, (Probe, Semaphore)>>,
    client: Arc<ProbeClient>,
    metrics: Arc<Metrics>,
}

/// Serves probes until the process ends, also during the drain, since the program still runs.
pub(crate) async fn serve(listener: TcpListener, probes: Probes, metrics: Arc<Metrics>) {
    let client = match ProbeClient::new() {
        Ok(client) => Arc::new(client),
        Err(error) => {
            tracing::error!(%error, "probes.failed");
            return;
        }
    };
    let listener_state = Listener {
        probes: Arc::new(with_limits(probes)),
        client,
        metrics,
    };
    let routes = Router::new().fallback(answer).with_state(listener_state);
    let routes = |stream: &TcpStream| routes.clone().layer(Extension(PodAddress::of(stream)));
    let forever = std::future::pending();
    http::serve(listener, Limits::default(), routes, forever).await;
}

fn with_limits(probes: Probes) -> BTreeMap<String, (Probe, Semaphore)> {
    let each = probes.into_iter();
    each.map(|(path, probe)| (path, (probe, Semaphore::new(CONCURRENT))))
        .collect()
}

/// The pod's address that the kubelet connected to, where it would have probed the program.
#[derive(Debug, Clone, Copy)]
struct PodAddress(Option<IpAddr>);

impl PodAddress {
    fn of(stream: &TcpStream) -> Self {
        let own = stream.local_addr();
        Self(own.ok().map(|own| own.ip().to_canonical()))
    }
}

async fn answer(
    State(listener): State<Listener>,
    Extension(PodAddress(own)): Extension<PodAddress>,
    request: Request,
) -> Response {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let allowed = [(header::ALLOW, "GET, HEAD")];
        return (
            StatusCode::METHOD_NOT_ALLOWED,
            allowed,
            "only GET and HEAD are allowed\n",
        )
            .into_response();
    }
    let Some((probe, permits)) = listener.probes.get(request.uri().path()) else {
        // The response does not list the probes, since the paths of hooks contain keys.
        return (StatusCode::NOT_FOUND, "there is no such probe\n").into_response();
    };
    let Some(own) = own else {
        return failure("the address of the pod is unknown");
    };
    let Ok(Ok(_permit)) = tokio::time::timeout(probe.timeout(), permits.acquire()).await else {
        listener.metrics.probes.inc(FetchResult::Failed);
        return failure("too many concurrent requests of this probe");
    };
    let agent = request.headers().get(header::USER_AGENT);
    let result = listener.client.probe(&probe.handler, own, agent);
    let outcome = match tokio::time::timeout(probe.timeout(), result).await {
        Ok(outcome) => outcome.map_err(|why| one_line(&why)),
        Err(_) => Err(format!(
            "the program did not respond within {} s",
            probe.timeout().as_secs()
        )),
    };
    match outcome {
        Ok(()) => {
            listener.metrics.probes.inc(FetchResult::Ok);
            (StatusCode::OK, "ok\n").into_response()
        }
        Err(why) => {
            listener.metrics.probes.inc(FetchResult::Failed);
            tracing::info!(
                probe = without_key(request.uri().path()),
                reason = why,
                "probe.failed"
            );
            failure(&why)
        }
    }
}

/// Removes the key of a hook: users who can read logs may not be allowed to read pods.
fn without_key(path: &str) -> &str {
    match (HookKey::from_path(path), path.rsplit_once('/')) {
        (Some(_), Some((rest, _))) => rest,
        _ => path,
    }
}

fn failure(why: &str) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response()
}

fn one_line(why: &str) -> String {
    let shown = why.chars().map(|c| if c.is_control() { ' ' } else { c });
    shown.take(REASON_LENGTH).collect()
}

pub(crate) mod client;
#[cfg(test)]
mod tests;
