//! Who is it, may they, how often, and does it look right: Merlon's policy decision point.
//!
//! Everything here is pure and synchronous: no sockets, no files, no clock. Time, keys and the bytes of a request
//! are arguments; the proxy asks, enforces, counts and logs.
#![doc = include_str!("../README.md")]

mod ast;
pub mod authn;
mod cedar;
pub mod decision;
mod document;
pub mod explain;
pub mod facts;
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
pub mod validate;
