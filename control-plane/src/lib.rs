//! Compiles resources, issues identities, and pushes to every proxy exactly the state that it needs.
#![doc = include_str!("../README.md")]

mod admin;
pub mod app;
mod cluster;
mod config;
pub mod flags;
#[doc(hidden)]
pub mod fuzzing;
mod grpc;
mod issuance;
pub mod limits;
mod push;
mod random;
mod secrets;
mod source;
mod state;
mod tasks;
pub mod telemetry;
mod transport;
mod webhook;

#[cfg(test)]
mod tests;

pub use config::{ControlPlaneConfig, KubernetesConfig, Source};
pub use source::kubernetes::OpenError;
