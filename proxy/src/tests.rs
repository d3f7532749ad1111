//! Whole-proxy tests on real sockets: real workers, programs behind them and clients in front.

mod access_log;
mod bounds;
mod control;
pub(crate) mod control_plane;
mod drain;
mod expiry;
pub(crate) mod fixtures;
mod gateway;
pub(crate) mod harness;
mod http2_bounds;
mod inbound;
mod interception;
mod layers;
mod log_events;
mod mesh;
mod outbound;
mod process;
mod recorded;
mod responses;
mod revocation;
mod smuggling;
mod streams;
mod upstream_bounds;
