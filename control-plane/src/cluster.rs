//! The API server of a cluster: watches, leases, token reviews, Secrets.

pub(crate) mod lease;
pub(crate) mod names;
pub(crate) mod secret;
pub(crate) mod token_review;
pub(crate) mod watch;
