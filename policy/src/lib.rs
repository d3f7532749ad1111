//! Merlon's policy decision point: authentication, authorization, rate limits and request validation.
//!
//! Everything here is pure and synchronous: no sockets, no files, no clock. Time, keys and the bytes of a request
//! are arguments; the proxy calls this crate, enforces its decisions, counts and logs.
#![doc = include_str!("../README.md")]

mod ast;
pub mod authn;
mod cedar;
mod contain;
pub mod decision;
mod document;
pub mod explain;
pub mod facts;
#[doc(hidden)]
pub mod fuzzing;
pub mod limit;
mod matcher;
pub mod mention;
pub mod path;
mod prepare;
pub mod principal;
pub mod problem;
pub mod record;
pub mod schema;
pub mod service;
pub mod stack;
pub mod text;
pub mod validate;

#[cfg(test)]
mod tests;
