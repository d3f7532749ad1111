//! The words that Merlon's users write, and the state that is made of them.
//!
//! Everything else stands on this crate and it stands on nothing of ours.
#![doc = include_str!("../README.md")]

pub mod live;
pub mod name;
pub mod resource;
pub mod snapshot;
pub mod unit;
