//! Merlon's proxy: the enforcement point, beside a workload or at the edge.
#![doc = include_str!("../README.md")]

pub mod app;
pub mod config;
pub mod flags;
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
