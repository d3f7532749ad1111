//! Guarantees a response and a log line for every request.

use std::convert::Infallible;

use futures_util::FutureExt as _;
use http::{HeaderValue, Request, Response, Version};
use hyper::body::Incoming;

use super::peer::Peer;
use crate::{
    protocol::{
        denial::{Denial, Upstream},
        peer_header,
        problem::{self, ProblemContext, is_grpc},
    },
    request::{exchange::Exchange, response_body::ResponseBody},
};

/// The denial of a refused request, and its exchange.
pub(crate) type Refused = (Denial, Box<Exchange>);

/// Runs `path` for a request, and turns a denial or a panic into a response. `broken` is the denial when the guard
/// already refused the request.
pub(crate) async fn respond(
    peer: &Peer,
    request: Request<Incoming>,
    broken: Option<Denial>,
    path: impl AsyncFnOnce(Request<Incoming>, Box<Exchange>) -> Result<Response<ResponseBody>, Refused>,
) -> Result<Response<ResponseBody>, Infallible> {
    // The response needs these, and the request may be consumed by then.
    let version = request.version();
    let grpc = is_grpc(request.headers());
    let begin = || {
        let mut exchange = Exchange::begin(
            &peer.local,
            peer.direction,
            peer.id.clone(),
            peer.address,
            version,
        );
        exchange.open_request = Some(peer.open_requests.begin());
        exchange
    };
    let outcome = match broken {
        Some(denial) => Err((denial, begin())),
        // The panic hook has logged it; only this request ends.
        None => {
            let (method, uri) = (request.method().clone(), request.uri().clone());
            let with_head = || {
                let mut exchange = begin();
                exchange.set_head(&method, &uri);
                exchange
            };
            std::panic::AssertUnwindSafe(path(request, with_head()))
                .catch_unwind()
                .await
                .unwrap_or_else(|_| Err((Denial::Internal, with_head())))
        }
    };
    Ok(match outcome {
        Ok(response) => response,
        Err((denial, exchange)) => refuse(denial, exchange, grpc, peer.is_meshed(), version),
    })
}

/// Turns a denial into a response. Nothing else does.
fn refuse(
    denial: Denial,
    mut exchange: Box<Exchange>,
    grpc: bool,
    meshed: bool,
    version: Version,
) -> Response<ResponseBody> {
    let decision_id = exchange.decision_id.to_string();
    let problem = problem::response(
        &denial,
        &ProblemContext {
            grpc,
            meshed,
            version,
            decision_id: &decision_id,
        },
    );
    let unserved = meshed
        && matches!(
            denial,
            Denial::Upstream(Upstream::Connect | Upstream::ConnectTimeout)
        );
    exchange.refuse(denial);
    let mut response = Response::new(ResponseBody::generated(problem.body).with_exchange(exchange));
    *response.status_mut() = problem.status;
    *response.headers_mut() = problem.headers;
    if unserved {
        let yes = HeaderValue::from_static("yes");
        response.headers_mut().insert(peer_header::UNSERVED, yes);
    }
    response
}
