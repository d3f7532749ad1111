//! The API server of a cluster: watches, leases, token reviews, Secrets, names and kinds.

pub(crate) mod endpoints;
pub(crate) mod gateway_api;
pub(crate) mod lease;
pub(crate) mod names;
pub(crate) mod pods;
pub(crate) mod secret;
pub(crate) mod token_review;
pub(crate) mod watch;
