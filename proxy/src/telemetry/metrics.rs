//! Metrics. Each worker has its own counters, without locks; a scrape adds them up.

pub(crate) mod counter;
mod label;
mod registry;
pub(crate) mod worker;

pub use label::{
    CacheResult, Direction, FetchResult, Handshake, Label, StatusClass, Transport, Update, Way,
};
pub use registry::Metrics;
