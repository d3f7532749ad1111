//! The configuration that Merlon's users write, and the state that is compiled from it.
//!
//! All other crates depend on this one. It depends on no other crate of the workspace.
#![doc = include_str!("../README.md")]

mod check;
mod document;
pub mod nearest;
mod node;
mod read;

pub mod bootstrap;
pub mod causes;
pub mod clock;
pub mod contain;
pub mod crd;
pub mod injection;
pub mod live;
pub mod load;
pub mod loopback;
pub mod name;
pub mod probe;
pub mod report;
pub mod resource;
pub mod resources;
pub mod schema;
pub mod snapshot;
pub mod stack;
pub mod unit;
pub mod watch;

pub use resources::Resources;

#[cfg(test)]
mod tests;
