//! When the user has had enough.

use tokio::signal::unix::{SignalKind, signal};

/// Waits for Ctrl-C, or for the signal by which supervisors end a process.
pub(crate) async fn told_to_end() {
    let (Ok(mut interrupt), Ok(mut terminate)) = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    ) else {
        // Without handlers the signals end the process at once, which is what they are for.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
