//! The certificate issuers: the embedded authority, and Vault against a real OpenBao.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a failed test panics"
)]

mod bao;
mod embedded;
mod openbao;
