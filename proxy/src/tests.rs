//! Whole-proxy tests on real sockets: real workers, programs behind them and clients in front.

mod control;
pub(crate) mod control_plane;
pub(crate) mod fixtures;
mod gateway;
mod harness;
mod inbound;
mod interception;
mod layers;
mod log_events;
mod mesh;
mod outbound;
mod revocation;
mod smuggling;
mod streams;
