//! Where resources come from.

mod files;
mod status;

pub(crate) use files::{Files, same_mesh};
pub(crate) use status::{SharedStatus, SourceStatus};
