//! Sources of resources.

mod files;
pub(crate) mod kubernetes;
mod status;

pub(crate) use files::{Files, same_mesh};
pub(crate) use status::{SharedStatus, SourceStatus};
