//! The command line as an installed binary: the demo, and every other command on a live mesh and without one.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failed test panics"
)]

mod commands;
mod demo;
mod harness;
