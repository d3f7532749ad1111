//! Building blocks of the whole-proxy tests: proxies, programs and clients on real sockets.

mod ca;
mod client;
mod frames;
mod log;
mod node;
mod pair;
mod program;
mod state;

use std::time::Duration;

use tokio::task::LocalSet;

pub(super) use self::{
    ca::Ca,
    client::{
        connect_as_peer, get, h2_client, h2c, http1, next_data, post, raw, send_as_peer,
        send_as_peer_to, streamed_body,
    },
    frames::{
        DATA, ENHANCE_YOUR_CALM, FLOW_CONTROL_ERROR, GOAWAY, HEADERS, REFUSED_STREAM, RST_STREAM,
        RawH2, SETTINGS, WINDOW_UPDATE, cancel, frame, malformed_request, ping, request,
        start_of_request, trailers,
    },
    log::Log,
    node::Node,
    pair::Pair,
    program::{Program, full},
    state::{PERMIT_ALL, State, destination, service},
};

/// Runs a test on one thread, as a worker runs.
pub(super) fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let bounded = async {
        tokio::time::timeout(Duration::from_secs(30), test)
            .await
            .expect("the test did not end within 30 s")
    };
    LocalSet::new().block_on(&runtime, bounded);
}

/// Waits until `done`, which another task or thread brings about.
pub(crate) async fn until(what: &str, done: impl Fn() -> bool) {
    let mut looks = tokio::time::interval(Duration::from_millis(5));
    let waited = tokio::time::timeout(Duration::from_secs(20), async {
        while !done() {
            looks.tick().await;
        }
    });
    waited
        .await
        .unwrap_or_else(|_| panic!("waited for {what} for 20 s"));
}

/// Trust domain of every identity.
pub(super) const DOMAIN: &str = "demo.test";

/// SPIFFE ID of a workload given as `namespace/account`.
pub(super) fn spiffe(workload: &str) -> String {
    let (namespace, account) = workload.split_once('/').unwrap();
    format!("spiffe://{DOMAIN}/ns/{namespace}/sa/{account}")
}
