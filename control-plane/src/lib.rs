//! Compiles resources, issues identities, and tells every proxy what it needs.
#![doc = include_str!("../README.md")]

mod admin;
pub mod app;
mod authority;
mod config;
mod csr;
pub mod flags;
mod grants;
mod health;
mod inspect;
mod issue;
mod join_token;
mod kubernetes;
mod ledger;
mod metrics;
mod push;
mod random;
mod rate;
mod serve;
mod source;
mod state_dir;
mod store;
pub mod telemetry;
mod webhook;
mod world;

pub use config::{ControlPlaneConfig, KubernetesConfig, Source};
pub use kubernetes::OpenError;
