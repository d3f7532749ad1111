//! Rates for each peer.

pub(crate) mod rate;
