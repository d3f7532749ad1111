//! Where resources come from.

mod files;

pub(crate) use files::{Files, SourceStatus};
