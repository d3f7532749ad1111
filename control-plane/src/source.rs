//! Sources of resources.

mod files;
pub(crate) mod kubernetes;
mod status;

pub(crate) use files::Files;
pub(crate) use status::SharedStatus;
