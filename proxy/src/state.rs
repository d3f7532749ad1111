//! What all workers share: one value of each kind, swapped whole by the control thread, read without locks.

pub mod destinations;
pub(crate) mod gateway_ports;
pub(crate) mod jwks_cache;
pub mod readiness;
pub(crate) mod secrets;
pub(crate) mod shared;
pub(crate) mod snapshot;
