//! Identity documents, trust bundles and mesh TLS, through the public interface of the crate.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed test panics"
)]

mod documents;
mod handshake;
mod hostile_leaves;
mod support;
