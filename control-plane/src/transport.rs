//! The peer at the other end of a connection, and rates for each peer.

pub(crate) mod peer;
pub(crate) mod rate;
