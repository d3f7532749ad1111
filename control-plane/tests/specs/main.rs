//! Specifications of a control plane in this process, over gRPC with mutual TLS and over its Unix socket.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "helpers of specifications fail by panicking"
)]

mod administration;
mod faults;
mod harness;
mod identity;
mod push;
mod start;
