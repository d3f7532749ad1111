//! Compiles resources into the state of each proxy. Pure.
#![doc = include_str!("../README.md")]

mod address;
mod assemble;
mod attach;
mod check;
mod compiler;
mod declared;
mod gateway;
mod grants;
mod mesh;
mod select;
mod service;
mod state;

pub use compiler::Compiler;
pub use mesh::{Granted, Mesh, Proxy, ProxyUnknown, Wanted};
pub use state::{ProxyState, StateResource};
