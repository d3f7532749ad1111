//! What is counted. Each worker counts for itself, without locks; a scrape adds up.

pub(crate) mod counter;
mod label;
mod registry;
pub(crate) mod worker;

pub use label::{
    CacheResult, Direction, FetchResult, Handshake, Label, StatusClass, Transport, Update, Way,
};
pub use registry::Metrics;

/// Which way, and the stable reason code.
type RefusalKey = (Direction, &'static str);
