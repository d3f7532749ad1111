//! Waiting for conditions.

use std::{
    fmt,
    time::{Duration, Instant},
};

/// How long a test waits for anything before it fails. Long enough for a machine under heavy load.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// Waits until `condition` returns a value.
///
/// # Panics
/// If that does not happen within [`TIMEOUT`].
pub async fn until_some<T>(
    what: impl fmt::Display,
    condition: impl AsyncFnMut() -> Option<T>,
) -> T {
    until_some_within(TIMEOUT, what, condition).await
}

/// [`until_some`] with another time-out, for conditions that take longer.
///
/// # Panics
/// If that does not happen within `timeout`.
pub async fn until_some_within<T>(
    timeout: Duration,
    what: impl fmt::Display,
    mut condition: impl AsyncFnMut() -> Option<T>,
) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(
            start.elapsed() < timeout,
            "timed out after {timeout:?}, waiting until {what}"
        );
        tokio::time::sleep(PAUSE).await;
    }
}

/// Waits until `condition` is true.
///
/// # Panics
/// If that does not happen within [`TIMEOUT`].
pub async fn until(what: impl fmt::Display, mut condition: impl AsyncFnMut() -> bool) {
    until_some(what, async || condition().await.then_some(())).await;
}

const PAUSE: Duration = Duration::from_millis(20);
