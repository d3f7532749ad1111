//! What is pushed at this moment, and what is kept over a restart.

pub(crate) mod snapshot;
pub(crate) mod state_dir;
pub(crate) mod store;
