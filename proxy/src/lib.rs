//! Merlon's proxy: the enforcement point, beside a workload or at the edge.
#![doc = include_str!("../README.md")]

pub mod access_log;
pub mod app;
pub mod config;
pub mod decisions;
pub mod denial;
pub mod destinations;
pub mod flags;
pub mod frames;
pub mod health;
pub mod jwks;
pub mod layers;
pub mod listener;
pub mod metrics;
pub mod outside;
pub mod peer_header;
mod probes;
pub mod problem;
pub mod state;
pub mod state_dir;
pub mod strict;
pub mod trace_context;
pub mod worker;

mod admin;
mod assemble;
mod body;
mod connection;
mod control;
mod control_plane;
mod dump;
mod exchange;
mod follow;
mod freshness;
mod gateway;
mod identity;
mod identity_files;
mod inbound;
mod inspect;
mod intercept;
mod outbound;
mod secrets;
mod session;
mod standalone;
mod standing;
mod tcp;
mod upgrade;
mod upstream;

#[cfg(test)]
mod control_tests;

#[cfg(test)]
mod standin;

#[cfg(test)]
mod testing;

mod respond;
pub mod spans;
#[cfg(test)]
mod tests;
