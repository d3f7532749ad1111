//! Reports when files of a directory may have changed.

use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::{mpsc, watch};

/// How long no event may occur before a change is reported: editors and deployments write several files, and each file in
/// several steps.
const DEBOUNCE: Duration = Duration::from_millis(50);

/// A change is reported after this time at the latest, even if events keep occurring.
const MAX_DELAY: Duration = Duration::from_secs(1);

/// Polling interval if the system does not report changes.
const POLL_INTERVAL: Duration = Duration::from_secs(5);

/// Notifies when files below a directory may have changed.
///
/// Dropping it stops the watcher.
#[derive(Debug)]
pub struct Changes {
    changes: watch::Receiver<u64>,
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
    /// Waits for the next change. Changes between two calls are not lost and are reported as one.
    pub async fn next(&mut self) {
        if self.changes.changed().await.is_err() {
            // The runtime is shutting down, so there are no more changes.
            std::future::pending::<()>().await;
        }
    }
}

/// Watches a directory and everything below it.
///
/// It watches the directory instead of its files, because Kubernetes mounts swap a symbolic link and editors replace files.
/// If the system cannot report changes (too many watchers, some network file systems), it reports a change every 5 seconds
/// and logs a warning.
///
/// Must be called within a Tokio runtime.
pub fn watch_dir(directory: &Path) -> Changes {
    watch_or_poll(directory, POLL_INTERVAL)
}

fn watch_or_poll(directory: &Path, interval: Duration) -> Changes {
    let (sender, changes) = watch::channel(0);
    let task = tokio::spawn(follow(directory.to_path_buf(), interval, sender));
    Changes {
        changes,
        _task: AbortOnDrop(task),
    }
}

async fn follow(directory: PathBuf, interval: Duration, changes: watch::Sender<u64>) {
    let notify = || changes.send_modify(|count| *count = count.wrapping_add(1));
    let mut warned = false;
    loop {
        let (events, mut changed) = mpsc::channel(1);
        match watcher(&directory, events) {
            Ok(_watcher) => {
                let watched = inode(&directory);
                // Changes before the watcher started are not reported otherwise.
                notify();
                while changed.recv().await.is_some() {
                    settle(&mut changed).await;
                    notify();
                    if inode(&directory) != watched {
                        // The directory was replaced, but the watcher still watches the old one.
                        break;
                    }
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut warned, true) {
                    tracing::warn!(
                        directory = %directory.display(),
                        error = %error,
                        poll_interval = ?interval,
                        "files.watch_failed"
                    );
                }
                tokio::time::sleep(interval).await;
                notify();
            }
        }
    }
}

fn inode(directory: &Path) -> Option<(u64, u64)> {
    let metadata = std::fs::metadata(directory).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// Waits until no more events occur.
async fn settle(changed: &mut mpsc::Receiver<()>) {
    let settled =
        async { while let Ok(Some(())) = tokio::time::timeout(DEBOUNCE, changed.recv()).await {} };
    // On time-out, the change is reported now, and again after more events.
    let _ = tokio::time::timeout(MAX_DELAY, settled).await;
}

fn watcher(directory: &Path, events: mpsc::Sender<()>) -> notify::Result<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading the files is an event too. Reporting it would cause an endless loop.
        let relevant = event.map_or(true, |event| !matches!(event.kind, EventKind::Access(_)));
        if relevant {
            // If the channel is full, a notification is already pending.
            let _ = events.try_send(());
        }
    })?;
    watcher.watch(directory, RecursiveMode::Recursive)?;
    Ok(watcher)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    /// The longest that a test waits. Only a failed test waits this long.
    const PATIENCE: Duration = Duration::from_secs(60);

    async fn changed(changes: &mut Changes) -> bool {
        tokio::time::timeout(PATIENCE, changes.next()).await.is_ok()
    }

    #[tokio::test]
    async fn a_changed_file_a_new_folder_and_a_removed_file_are_reported() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.yaml"), "a").unwrap();
        let mut changes = watch_dir(folder.path());
        assert!(changed(&mut changes).await, "the initial notification");
        fs::write(folder.path().join("a.yaml"), "b").unwrap();
        assert!(changed(&mut changes).await, "a changed file");
        fs::create_dir(folder.path().join("shop")).unwrap();
        assert!(changed(&mut changes).await, "a new folder");
        fs::write(folder.path().join("shop/b.cedar"), "b").unwrap();
        assert!(changed(&mut changes).await, "a file in it");
        fs::remove_file(folder.path().join("a.yaml")).unwrap();
        assert!(changed(&mut changes).await, "a removed file");
    }

    #[tokio::test]
    async fn a_swapped_link_of_a_kubernetes_mount_is_reported() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("..1")).unwrap();
        fs::write(path("..1/a.yaml"), "old").unwrap();
        symlink("..1", path("..data")).unwrap();
        symlink("..data/a.yaml", path("a.yaml")).unwrap();
        let mut changes = watch_dir(folder.path());
        assert!(changed(&mut changes).await, "the initial notification");
        for round in 2..5 {
            let next = format!("..{round}");
            fs::create_dir(path(&next)).unwrap();
            fs::write(path(&next).join("a.yaml"), &next).unwrap();
            symlink(&next, path("..data_tmp")).unwrap();
            fs::rename(path("..data_tmp"), path("..data")).unwrap();
            assert!(changed(&mut changes).await, "swap {round}");
            assert_eq!(fs::read_to_string(path("a.yaml")).unwrap(), next);
            fs::remove_dir_all(path(&format!("..{}", round - 1))).unwrap();
            assert!(
                changed(&mut changes).await,
                "cleaning up after swap {round}"
            );
        }
    }

    #[tokio::test]
    async fn a_directory_that_replaces_the_watched_one_is_watched() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("now")).unwrap();
        fs::create_dir(path("next")).unwrap();
        let mut changes = watch_dir(&path("now"));
        assert!(changed(&mut changes).await, "the initial notification");
        fs::rename(path("now"), path("before")).unwrap();
        fs::rename(path("next"), path("now")).unwrap();
        assert!(changed(&mut changes).await, "the swap");
        // The next watcher may start before or after this write. In both cases it is reported.
        fs::write(path("now/a.yaml"), "a").unwrap();
        assert!(changed(&mut changes).await, "a file in the new one");
    }

    #[tokio::test]
    async fn a_directory_that_cannot_be_watched_is_polled() {
        let mut changes = watch_or_poll(Path::new("/nowhere/at/all"), Duration::from_millis(1));
        for _ in 0..3 {
            assert!(changed(&mut changes).await);
        }
    }

    #[tokio::test]
    async fn a_directory_that_is_created_later_is_watched_from_then_on() {
        let folder = tempfile::tempdir().unwrap();
        let late = folder.path().join("late");
        let interval = PATIENCE * 60;
        let mut changes = watch_or_poll(&late, interval);
        // The task finds no directory, and waits for the interval.
        tokio::task::yield_now().await;
        fs::create_dir(&late).unwrap();
        tokio::time::pause();
        tokio::time::advance(interval).await;
        tokio::time::resume();
        assert!(changed(&mut changes).await, "the directory exists");
        // It polls again only in an hour, so each further notification is the watcher's.
        for text in ["a", "b"] {
            fs::write(late.join("a.yaml"), text).unwrap();
            assert!(changed(&mut changes).await, "a file in it");
        }
    }
}
