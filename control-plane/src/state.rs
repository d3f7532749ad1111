//! The current snapshot, and what is kept across a restart.

pub(crate) mod snapshot;
pub(crate) mod state_dir;
pub(crate) mod store;
