//! Connections to the local program, other proxies and external hosts. Each worker has its own pools: no request
//! crosses threads.

pub(crate) mod balancer;
pub(crate) mod body;
pub(crate) mod dial;
pub(crate) mod dns;
pub(crate) mod h2;
pub(crate) mod http1;
pub(crate) mod mesh;
pub(crate) mod program;
pub(crate) mod route;

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
