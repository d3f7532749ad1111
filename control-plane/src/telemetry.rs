//! Metrics, spans and the process log.

pub(crate) mod metrics;
pub(crate) mod spans;

pub use spans::log_to_stderr;
