//! A node's probes of the program. The node's own would end at this proxy: one by TCP would pass with the program dead, and
//! one by HTTP bears no identity of the mesh. So the node asks here, and the very same is asked of the program.
//!
//! Whoever reaches the pod reaches this. It asks nothing but what the pod's author wrote down, by GET and HEAD alone, and
//! tells no more than whether the answer was right, and if not, in one line why. A hook of a container's life does something
//! to the program, so the last part of its path is a key that only the pod's description tells.

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

/// How often one probe is made at the same time. A node makes it once; who makes many is a stranger, and waits. Each probe
/// has places of its own, so that one that a program answers slowly delays no other.
const AT_ONCE: usize = 8;
/// What is told of a reason, in characters: a program may have written it, and be talkative.
const REASON: usize = 256;

#[derive(Clone)]
struct Listener {
    probes: Arc<BTreeMap<String, (Probe, Semaphore)>>,
    asker: Arc<ProbeClient>,
    metrics: Arc<Metrics>,
}

/// Answers, until the process ends: also while it drains, since the program still runs.
pub(crate) async fn serve(listener: TcpListener, probes: Probes, metrics: Arc<Metrics>) {
    let asker = match ProbeClient::new() {
        Ok(asker) => Arc::new(asker),
        Err(error) => {
            tracing::error!(%error, "probes.failed");
            return;
        }
    };
    let listener_state = Listener {
        probes: Arc::new(places(probes)),
        asker,
        metrics,
    };
    let routes = Router::new().fallback(answer).with_state(listener_state);
    let routes = |stream: &TcpStream| routes.clone().layer(Extension(Reached::by(stream)));
    let forever = std::future::pending();
    http::serve(listener, Limits::default(), routes, forever).await;
}

fn places(probes: Probes) -> BTreeMap<String, (Probe, Semaphore)> {
    let each = probes.into_iter();
    each.map(|(path, probe)| (path, (probe, Semaphore::new(AT_ONCE))))
        .collect()
}

/// The address of the pod by which the node reached us: there it would have asked the program.
#[derive(Debug, Clone, Copy)]
struct Reached(Option<IpAddr>);

impl Reached {
    fn by(stream: &TcpStream) -> Self {
        let own = stream.local_addr();
        Self(own.ok().map(|own| own.ip().to_canonical()))
    }
}

async fn answer(
    State(listener): State<Listener>,
    Extension(Reached(own)): Extension<Reached>,
    request: Request,
) -> Response {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let allowed = [(header::ALLOW, "GET, HEAD")];
        return (
            StatusCode::METHOD_NOT_ALLOWED,
            allowed,
            "only GET and HEAD\n",
        )
            .into_response();
    }
    let Some((probe, places)) = listener.probes.get(request.uri().path()) else {
        // Those that there are, and the keys of hooks among them, stand in the pod's description.
        return (StatusCode::NOT_FOUND, "there is no such probe\n").into_response();
    };
    let Some(own) = own else {
        return wrong("the pod's own address is not known");
    };
    let Ok(Ok(_place)) = tokio::time::timeout(probe.timeout(), places.acquire()).await else {
        listener.metrics.probes.inc(FetchResult::Failed);
        return wrong("this probe is asked for too often at once");
    };
    let agent = request.headers().get(header::USER_AGENT);
    let asked = listener.asker.ask(&probe.handler, own, agent);
    let outcome = match tokio::time::timeout(probe.timeout(), asked).await {
        Ok(outcome) => outcome.map_err(|why| one_line(&why)),
        Err(_) => Err(format!(
            "the program did not answer within {} s",
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
            wrong(&why)
        }
    }
}

/// Who reads logs may be somebody else than who may read pods.
fn without_key(path: &str) -> &str {
    match (HookKey::from_path(path), path.rsplit_once('/')) {
        (Some(_), Some((rest, _))) => rest,
        _ => path,
    }
}

fn wrong(why: &str) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response()
}

fn one_line(why: &str) -> String {
    let shown = why.chars().map(|c| if c.is_control() { ' ' } else { c });
    shown.take(REASON).collect()
}

pub(crate) mod client;
#[cfg(test)]
mod tests;
