//! Building blocks of the whole-proxy tests: proxies, programs and clients on real sockets.

mod ca;
mod client;
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

/// Trust domain of every identity.
pub(super) const DOMAIN: &str = "demo.test";

/// SPIFFE ID of a workload given as `namespace/account`.
pub(super) fn spiffe(workload: &str) -> String {
    let (namespace, account) = workload.split_once('/').unwrap();
    format!("spiffe://{DOMAIN}/ns/{namespace}/sa/{account}")
}
