//! State that all workers share. The control thread replaces each value as a whole; workers read it without locks.

pub mod destinations;
pub(crate) mod gateway_ports;
pub(crate) mod jwks_cache;
pub mod readiness;
pub(crate) mod secrets;
pub(crate) mod shared;
pub(crate) mod snapshot;
