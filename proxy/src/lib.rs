//! Merlon's proxy: the enforcement point, beside a workload or at the edge.
#![doc = include_str!("../README.md")]

pub mod config;
pub mod decisions;
pub mod destinations;
pub mod health;
pub mod jwks;
pub mod metrics;
pub mod state;
pub mod telemetry;

mod backoff;
