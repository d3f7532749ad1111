//! The peer of a connection, and rate limits for each peer.

pub(crate) mod peer;
pub(crate) mod rate;
