//! One request on its worker: the worker's context, the call and its stages, the checks, bodies and tunnels.

pub(crate) mod call;
pub(crate) mod checks;
pub(crate) mod exchange;
pub(crate) mod forwarded_response;
pub(crate) mod open_permit;
pub(crate) mod open_requests;
pub(crate) mod response_body;
pub(crate) mod target;
pub(crate) mod token_cache;
pub(crate) mod tunnel;
pub(crate) mod worker_context;
