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
    watch_and_look(directory, LOOK)
}

fn watch_and_look(directory: &Path, every: Duration) -> Changes {
    let (ticks, receiver) = watch::channel(0);
    let task = tokio::spawn(follow(directory.to_path_buf(), every, ticks));
    Changes {
        ticks: receiver,
        _task: AbortOnDrop(task),
    }
}

async fn follow(directory: PathBuf, every: Duration, ticks: watch::Sender<u64>) {
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
                        every = ?every,
                        "changes of files are not told by the system, so they are looked for"
                    );
                }
                tokio::time::sleep(every).await;
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

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    async fn ticks(changes: &mut Changes) -> bool {
        tokio::time::timeout(Duration::from_secs(10), changes.next())
            .await
            .is_ok()
    }

    #[tokio::test]
    async fn a_changed_file_a_new_folder_and_a_removed_file_are_told() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.yaml"), "a").unwrap();
        let mut changes = watch_dir(folder.path());
        assert!(ticks(&mut changes).await, "the first look");
        fs::write(folder.path().join("a.yaml"), "b").unwrap();
        assert!(ticks(&mut changes).await, "a changed file");
        fs::create_dir(folder.path().join("shop")).unwrap();
        assert!(ticks(&mut changes).await, "a new folder");
        fs::write(folder.path().join("shop/b.cedar"), "b").unwrap();
        assert!(ticks(&mut changes).await, "a file in it");
        fs::remove_file(folder.path().join("a.yaml")).unwrap();
        assert!(ticks(&mut changes).await, "a removed file");
    }

    #[tokio::test]
    async fn a_swapped_link_as_kubernetes_mounts_have_it_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("..1")).unwrap();
        fs::write(path("..1/a.yaml"), "old").unwrap();
        symlink("..1", path("..data")).unwrap();
        symlink("..data/a.yaml", path("a.yaml")).unwrap();
        let mut changes = watch_dir(folder.path());
        assert!(ticks(&mut changes).await, "the first look");
        for round in 2..5 {
            let next = format!("..{round}");
            fs::create_dir(path(&next)).unwrap();
            fs::write(path(&next).join("a.yaml"), &next).unwrap();
            symlink(&next, path("..data_tmp")).unwrap();
            fs::rename(path("..data_tmp"), path("..data")).unwrap();
            assert!(ticks(&mut changes).await, "swap {round}");
            assert_eq!(fs::read_to_string(path("a.yaml")).unwrap(), next);
            fs::remove_dir_all(path(&format!("..{}", round - 1))).unwrap();
            assert!(ticks(&mut changes).await, "cleaning up after swap {round}");
        }
    }

    #[tokio::test]
    async fn a_directory_that_takes_the_place_of_the_watched_one_is_watched() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("now")).unwrap();
        fs::create_dir(path("next")).unwrap();
        let mut changes = watch_dir(&path("now"));
        assert!(ticks(&mut changes).await, "the first look");
        fs::rename(path("now"), path("before")).unwrap();
        fs::rename(path("next"), path("now")).unwrap();
        assert!(ticks(&mut changes).await, "the swap");
        // The next watcher may stand before or after this: either way it is told.
        fs::write(path("now/a.yaml"), "a").unwrap();
        assert!(ticks(&mut changes).await, "a file in the new one");
    }

    #[tokio::test]
    async fn where_the_system_does_not_tell_it_is_looked_for() {
        let mut changes = watch_and_look(Path::new("/nowhere/at/all"), Duration::from_millis(1));
        for _ in 0..3 {
            assert!(ticks(&mut changes).await);
        }
    }

    #[tokio::test]
    async fn a_directory_that_comes_later_is_watched_from_then_on() {
        let folder = tempfile::tempdir().unwrap();
        let late = folder.path().join("late");
        let mut changes = watch_and_look(&late, Duration::from_millis(1));
        assert!(ticks(&mut changes).await, "looking");
        fs::create_dir(&late).unwrap();
        fs::write(late.join("a.yaml"), "a").unwrap();
        assert!(ticks(&mut changes).await, "it is there");
    }
}
