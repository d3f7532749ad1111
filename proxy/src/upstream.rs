//! Whom we connect to: the program beside us, and other proxies. Pools are a worker's own: no request crosses threads.

pub(crate) mod body;
pub(crate) mod dial;
pub(crate) mod dns;
pub(crate) mod h2;
pub(crate) mod http1;
pub(crate) mod mesh;
pub(crate) mod program;
pub(crate) mod route;

/// What goes back to its pool when an answer has passed.
#[derive(Debug)]
pub(crate) enum Returned {
    /// An HTTP/1 connection, idle again.
    Http1(http1::PooledConnection),
    /// A place among an HTTP/2 connection's streams.
    H2(#[expect(dead_code, reason = "held for what its drop does")] h2::Lease),
}

impl Returned {
    /// Its state is unknown: it must not be used again.
    pub(crate) fn spoil(&mut self) {
        if let Self::Http1(borrowed) = self {
            borrowed.spoil();
        }
    }
}
