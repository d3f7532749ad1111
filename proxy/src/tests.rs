//! The request path on real sockets: workers as they run, programs behind them, callers in front.

mod gateway;
mod harness;
mod inbound;
mod interception;
mod mesh;
mod outbound;
mod revocation;
mod smuggling;
mod streams;
