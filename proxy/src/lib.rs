//! Merlon's proxy: the policy enforcement point, as a sidecar or as a gateway.
#![doc = include_str!("../README.md")]

pub mod app;
pub mod config;
pub mod flags;
#[doc(hidden)]
pub mod fuzzing;
pub mod limits;
pub mod protocol;
pub mod state;
pub mod telemetry;

mod control;
mod downstream;
mod gateway;
mod inbound;
mod outbound;
mod request;
mod upstream;
mod worker;

#[cfg(test)]
mod tests;
