//! A connection or stream that a response still uses.

use super::{h2, http1};

/// What a response returns to its pool when it has passed.
#[derive(Debug)]
pub(crate) enum PoolGuard {
    /// An HTTP/1 connection.
    Http1(http1::PooledConnection),
    /// One stream of an HTTP/2 connection.
    H2(#[expect(dead_code, reason = "held for what its drop does")] h2::Lease),
}

impl PoolGuard {
    /// Prevents reuse, because the connection's state is unknown.
    pub(crate) fn discard(&mut self) {
        if let Self::Http1(borrowed) = self {
            borrowed.discard();
        }
    }
}
