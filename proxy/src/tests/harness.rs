//! Building blocks of the whole-proxy tests: proxies, programs and clients on real sockets.

mod ca;
mod client;
mod frames;
mod log;
mod node;
mod pair;
mod program;
mod readme;
mod state;

use merlon_test_support::wait;
use tokio::task::LocalSet;

pub(crate) use self::{
    ca::Ca,
    client::{
        CollectedResponse, collect, connect_as_peer, get, h2_client, h2c, http1, next_data, post,
        raw, send_as_peer, send_as_peer_to, streamed_body, until_closed,
    },
    frames::{
        DATA, ENHANCE_YOUR_CALM, FLOW_CONTROL_ERROR, GOAWAY, HEADERS, PING, REFUSED_STREAM,
        RST_STREAM, RawH2, SETTINGS, WINDOW_UPDATE, cancel, frame, malformed_request, ping,
        request, start_of_request, trailers,
    },
    log::Log,
    node::Node,
    pair::Pair,
    program::{Program, full, full_queue},
    readme::{removed_headers, spellings_of_removed_headers},
    state::{PERMIT_ALL, State, destination, service},
};

/// Runs a test on one thread, as a worker runs, and fails if it does not end.
#[track_caller]
pub(crate) fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    // Twice, so that a wait within the test reports what it waits for.
    let bounded = wait::limit_to(2 * wait::TIMEOUT, "the end of the test", test);
    LocalSet::new().block_on(&runtime, bounded);
}

/// Waits until `done`, which another task or thread brings about.
#[track_caller]
pub(crate) fn until(what: &str, done: impl Fn() -> bool) -> impl Future<Output = ()> {
    wait::until(what, async move || done())
}

/// Trust domain of every identity.
pub(crate) const DOMAIN: &str = "demo.test";

/// SPIFFE ID of a workload given as `namespace/account`.
pub(crate) fn spiffe(workload: &str) -> String {
    let (namespace, account) = workload.split_once('/').unwrap();
    format!("spiffe://{DOMAIN}/ns/{namespace}/sa/{account}")
}
