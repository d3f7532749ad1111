//! Says when files of a directory may have changed.

use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::{mpsc, watch};

/// How long it must be quiet before a change is told: editors and deployments write several files, and a file in
/// several steps.
const QUIET: Duration = Duration::from_millis(50);

/// A change is told at the latest after this time, also when it is never quiet.
const LATEST: Duration = Duration::from_secs(1);

/// How often to look where the system cannot tell.
const LOOK: Duration = Duration::from_secs(5);

/// Ticks whenever something below a directory may have changed.
///
/// Ends with the value: dropping it stops the watching.
#[derive(Debug)]
pub struct Changes {
    ticks: watch::Receiver<u64>,
    _task: AbortOnDrop,
}

#[derive(Debug)]
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Changes {
    /// Waits for the next change. A change between two calls is not lost; several become one.
    pub async fn next(&mut self) {
        if self.ticks.changed().await.is_err() {
            // Only when the runtime ends: there is nothing more to tell.
            std::future::pending::<()>().await;
        }
    }
}

/// Watches a directory and what is below it.
///
/// The directory and not its files: Kubernetes mounts swap a symbolic link, and editors replace files. Where the system
/// cannot tell of changes (too many watchers, some network file systems) it ticks every 5 seconds, and logs that.
///
/// Must be called within a Tokio runtime.
pub fn watch_dir(directory: &Path) -> Changes {
    let (ticks, receiver) = watch::channel(0);
    let task = tokio::spawn(follow(directory.to_path_buf(), ticks));
    Changes {
        ticks: receiver,
        _task: AbortOnDrop(task),
    }
}

async fn follow(directory: PathBuf, ticks: watch::Sender<u64>) {
    let tell = || ticks.send_modify(|count| *count = count.wrapping_add(1));
    let mut said = false;
    loop {
        let (events, mut changed) = mpsc::channel(1);
        match watcher(&directory, events) {
            Ok(_watcher) => {
                let watched = inode(&directory);
                // What changed before the watcher stood would never be told.
                tell();
                while changed.recv().await.is_some() {
                    settle(&mut changed).await;
                    tell();
                    if inode(&directory) != watched {
                        // Another directory has its name now, and the watcher is still with the old one.
                        break;
                    }
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut said, true) {
                    tracing::warn!(
                        directory = %directory.display(),
                        error = %error,
                        seconds = LOOK.as_secs(),
                        "changes of files are not told by the system, so they are looked for"
                    );
                }
                tokio::time::sleep(LOOK).await;
                tell();
            }
        }
    }
}

fn inode(directory: &Path) -> Option<(u64, u64)> {
    let metadata = std::fs::metadata(directory).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// Waits until it is quiet.
async fn settle(changed: &mut mpsc::Receiver<()>) {
    let settled =
        async { while let Ok(Some(())) = tokio::time::timeout(QUIET, changed.recv()).await {} };
    // Over time: told now, and again when it is quiet.
    let _ = tokio::time::timeout(LATEST, settled).await;
}

fn watcher(directory: &Path, events: mpsc::Sender<()>) -> notify::Result<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading the files is an event too, and would be a circle.
        let matters = event.map_or(true, |event| !matches!(event.kind, EventKind::Access(_)));
        if matters {
            // Full means that a tick is waiting already.
            let _ = events.try_send(());
        }
    })?;
    watcher.watch(directory, RecursiveMode::Recursive)?;
    Ok(watcher)
}
