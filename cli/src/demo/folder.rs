//! The folder with all files of a demo. It is removed at the end, unless `--keep` is set.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use crate::{failure::Failure, output::eprint_line};

const PREFIX: &str = "merlon-demo-";
/// Locked while the demo runs. The kernel releases the lock also when the demo is killed.
const LOCK_FILE: &str = ".claim";

/// The path of a Unix socket has at most 107 bytes (103 on macOS); the longest here is
/// `payments-sidecar-state/admin.sock`.
const MAX_FOLDER: usize = 68;

/// The folder of a demo.
pub(crate) enum Folder {
    Permanent(PathBuf),
    /// Removed at the end. The next demo removes the folder of one that was killed.
    Temporary(TempDir, FolderLock),
}

impl Folder {
    pub(crate) fn create(keep: Option<&Path>) -> Result<Self, Failure> {
        let folder = Self::choose(keep)?;
        let bytes = folder.path().as_os_str().len();
        if bytes > MAX_FOLDER {
            return Err(Failure::usage(format!(
                "the path {} has {bytes} bytes; Unix sockets in it need at most {MAX_FOLDER}",
                folder.path().display()
            ))
            .hint("set a shorter path with `--keep` or TMPDIR"));
        }
        Ok(folder)
    }

    fn choose(keep: Option<&Path>) -> Result<Self, Failure> {
        let failed = |path: &Path, error: io::Error| {
            Failure::usage(format!(
                "cannot use {} for the demo: {error}",
                path.display()
            ))
        };
        let Some(path) = keep else {
            let parent = std::env::temp_dir();
            remove_stale(&parent);
            let created = tempfile::Builder::new()
                .prefix(PREFIX)
                .tempdir_in(&parent)
                .and_then(|folder| {
                    let lock = FolderLock::acquire(folder.path())?;
                    Ok(Self::Temporary(folder, lock))
                });
            return created.map_err(|error| failed(&parent, error));
        };
        private_folder(path)?;
        let path = path.canonicalize().map_err(|error| failed(path, error))?;
        let mut entries = fs::read_dir(&path).map_err(|error| failed(&path, error))?;
        match entries.next() {
            None => Ok(Self::Permanent(path)),
            Some(_) => Err(Failure::usage(format!("{} is not empty", path.display()))
                .hint("choose a folder that does not exist yet")),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Permanent(path) => path,
            Self::Temporary(folder, _) => folder.path(),
        }
    }

    pub(crate) fn remove(self) -> Result<(), Failure> {
        match self {
            Self::Permanent(path) => {
                eprint_line(&format!("kept {}", path.display()));
                Ok(())
            }
            Self::Temporary(folder, _lock) => {
                let path = folder.path().to_owned();
                folder.close().map_err(|error| {
                    Failure::runtime(format!("cannot remove {}: {error}", path.display()))
                })
            }
        }
    }
}

/// Shows other demos that the demo of a folder still runs.
#[derive(Debug)]
pub(crate) struct FolderLock {
    _file: File,
}

impl FolderLock {
    fn acquire(folder: &Path) -> io::Result<Self> {
        // Renamed only after it is locked, so another demo never finds it unlocked.
        let temporary = folder.join(format!("{LOCK_FILE}.new"));
        let file = File::create_new(&temporary)?;
        file.lock()?;
        fs::rename(&temporary, folder.join(LOCK_FILE))?;
        Ok(Self { _file: file })
    }
}

/// Creates a folder that only this user can read: sidecars keep their keys there.
pub(crate) fn private_folder(path: &Path) -> Result<(), Failure> {
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path);
    made.map_err(|error| Failure::runtime(format!("cannot create {}: {error}", path.display())))
}

/// Removes the folders of killed demos of this user. A folder that cannot be removed does no harm and stays.
fn remove_stale(parent: &Path) {
    let own = rustix::process::geteuid().as_raw();
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    for entry in entries {
        let named = entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(PREFIX.as_bytes());
        // `DirEntry::metadata` does not follow links: the target of a link is not a demo's folder.
        let is_own = entry
            .metadata()
            .is_ok_and(|metadata| metadata.is_dir() && metadata.uid() == own);
        if !named || !is_own {
            continue;
        }
        let folder = entry.path();
        let lock = File::options()
            .read(true)
            .write(true)
            .open(folder.join(LOCK_FILE));
        if lock.is_ok_and(|lock| lock.try_lock().is_ok()) {
            let _ = fs::remove_dir_all(&folder);
        }
    }
}
