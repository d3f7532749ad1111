//! One request on its worker: the worker's context, the call and its stages, the checks, bodies and tunnels.

pub mod checks;
pub(crate) mod exchange;
pub(crate) mod open_permit;
pub(crate) mod response_body;
pub(crate) mod token_cache;
