//! What the proxy and the control plane share of the network.
#![doc = include_str!("../README.md")]

pub mod backoff;
pub mod handshakes;
pub mod http;
mod open_files;
pub mod process_log;

pub use self::open_files::allow_all_files;

#[cfg(test)]
mod tests;
