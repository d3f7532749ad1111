//! What the tests of all crates share: waits with time limits, certificates, folders, ports and processes.
#![doc = include_str!("../README.md")]

pub mod ca;
pub mod folder;
pub mod log;
pub mod openbao;
pub mod ports;
pub mod process;
pub mod runtime;
pub mod tools;
pub mod wait;

pub use wait::{limit, until, until_some};
