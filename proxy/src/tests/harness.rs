//! Nodes, programs and callers that read like sentences.

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
        as_peer, ask_as_peer, ask_as_peer_at, channel, get, h2_client, h2c, http1, piece, post, raw,
    },
    log::Log,
    node::Node,
    pair::Pair,
    program::{Program, full},
    state::{ALL, State, destination, service},
};

/// Runs a test as a worker runs: on one thread.
pub(super) fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let all = async {
        tokio::time::timeout(Duration::from_secs(30), test)
            .await
            .expect("the test hangs")
    };
    LocalSet::new().block_on(&runtime, all);
}

pub(super) const DOMAIN: &str = "demo.test";

pub(super) fn spiffe(workload: &str) -> String {
    let (namespace, account) = workload.split_once('/').unwrap();
    format!("spiffe://{DOMAIN}/ns/{namespace}/sa/{account}")
}
