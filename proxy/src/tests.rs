//! The request path on real sockets: workers as they run, programs behind them, callers in front.

mod control;
pub(crate) mod control_plane;
pub(crate) mod fixtures;
mod gateway;
mod harness;
mod inbound;
mod interception;
mod layers;
mod mesh;
mod outbound;
mod revocation;
mod smuggling;
mod streams;
