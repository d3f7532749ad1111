//! Metrics, access log, decision log, spans, and destinations outside the mesh.

pub mod access_log;
pub mod decision_log;
pub mod egress_log;
pub mod metrics;
pub mod spans;
