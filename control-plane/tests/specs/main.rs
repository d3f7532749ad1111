//! A control plane in this process, spoken to as proxies and people do: gRPC over mutual TLS, and its Unix socket.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of specifications fail by panicking"
)]

mod administration;
mod harness;
mod identity;
mod push;
mod start;
