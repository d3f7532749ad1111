//! A control plane in this process, spoken to as proxies and people do: gRPC over mutual TLS, and its Unix socket.

mod administration;
mod harness;
mod identity;
mod push;
mod start;
