//! Merlon's proxy: the enforcement point, beside a workload or at the edge.
#![doc = include_str!("../README.md")]

pub mod app;
pub mod config;
pub mod decisions;
pub mod destinations;
pub mod flags;
pub mod health;
pub mod jwks;
pub mod logging;
pub mod metrics;
pub mod state;
pub mod state_dir;
pub mod telemetry;

mod admin;
mod assemble;
mod backoff;
mod bind;
mod control;
mod control_plane;
mod dump;
mod follow;
mod freshness;
mod identity;
mod identity_files;
mod idle;
mod inspect;
mod standalone;
