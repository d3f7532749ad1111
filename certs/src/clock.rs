//! The wall clock, in the form of certificates.

use std::sync::Arc;

use merlon_config::clock;
use rustls::{pki_types::UnixTime, time_provider::TimeProvider};

/// The current time of [`merlon_config::clock`].
pub fn unix_now() -> UnixTime {
    UnixTime::since_unix_epoch(clock::since_epoch())
}

/// The same clock for TLS configurations: handshakes verify certificates by it.
pub fn time_provider() -> Arc<dyn TimeProvider> {
    Arc::new(WallClock)
}

#[derive(Debug)]
struct WallClock;

impl TimeProvider for WallClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(unix_now())
    }
}
