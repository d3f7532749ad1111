//! Waiting for what must become true.

use std::{
    fmt,
    time::{Duration, Instant},
};

/// How long anything may take before a test gives up: not what is expected, but what is certainly too long, also on a
/// machine that is busy with other things.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// Waits until `condition` gives a value.
///
/// # Panics
/// When that does not happen within [`TIMEOUT`].
pub async fn until_some<T>(
    what: impl fmt::Display,
    condition: impl AsyncFnMut() -> Option<T>,
) -> T {
    until_some_within(TIMEOUT, what, condition).await
}

/// The same where what is waited for waits itself.
///
/// # Panics
/// When that does not happen within `patience`.
pub async fn until_some_within<T>(
    patience: Duration,
    what: impl fmt::Display,
    mut condition: impl AsyncFnMut() -> Option<T>,
) -> T {
    let begun = Instant::now();
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(
            begun.elapsed() < patience,
            "waited {patience:?} in vain until {what}"
        );
        tokio::time::sleep(PAUSE).await;
    }
}

/// Waits until `condition` holds.
///
/// # Panics
/// When that does not happen within [`TIMEOUT`].
pub async fn until(what: impl fmt::Display, mut condition: impl AsyncFnMut() -> bool) {
    until_some(what, async || condition().await.then_some(())).await;
}

const PAUSE: Duration = Duration::from_millis(20);
