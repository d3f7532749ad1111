//! The directory with the identity and the last good state, for a restart.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{
        DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
    },
    path::{Path, PathBuf},
};

/// A directory with mode 0700, locked by one process at a time.
#[derive(Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
    /// Locked while the process runs.
    _lock: File,
}

/// Why a directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// Other users can access it.
    #[error(
        "other users can access it (mode {0:04o}), and it contains a private key; run `chmod 700` on it"
    )]
    Open(u32),
    /// Another user owns it.
    #[error("it is owned by another user ({0})")]
    Owner(u32),
    /// Another process uses it.
    #[error("another process uses it")]
    InUse,
    /// An I/O error.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Maximum size of a file.
const LIMIT: u64 = 128 << 20;

impl StateDir {
    /// Opens or creates the directory (mode 0700), and locks it for this process.
    ///
    /// # Errors
    /// [`StateDirError`].
    pub(crate) fn open(path: &Path) -> Result<Self, StateDirError> {
        if !path.exists() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)?;
        }
        let found = fs::metadata(path)?;
        if found.uid() != rustix::process::geteuid().as_raw() {
            return Err(StateDirError::Owner(found.uid()));
        }
        let mode = found.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(StateDirError::Open(mode));
        }
        let lock = private()
            .read(true)
            .truncate(false)
            .open(path.join("lock"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(StateDirError::InUse),
            Err(fs::TryLockError::Error(error)) => return Err(error.into()),
        }
        Ok(Self {
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// The path of a file in it.
    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Reads a file; `None` if it does not exist.
    pub(crate) fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let file = match File::open(self.join(name)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        file.take(LIMIT).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    /// Replaces a file atomically, also if the machine crashes in between (mode 0600).
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let next = self.join(&format!("{name}.next"));
        let written = (|| {
            let mut file = private().truncate(true).open(&next)?;
            file.set_permissions(Permissions::from_mode(0o600))?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&next, self.join(name))?;
            File::open(&self.path)?.sync_all()
        })();
        if written.is_err() {
            // On a full disk, a partial file would only use more space.
            let _ = fs::remove_file(&next);
        }
        written
    }
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create(true).mode(0o600);
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_other_users_can_access_is_rejected() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o750)).unwrap();
        assert!(matches!(
            StateDir::open(dir.path()),
            Err(StateDirError::Open(0o750))
        ));
    }

    #[test]
    fn a_second_process_cannot_use_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let first = StateDir::open(&path).unwrap();
        assert!(matches!(StateDir::open(&path), Err(StateDirError::InUse)));
        drop(first);
        assert!(StateDir::open(&path).is_ok());
    }

    #[test]
    fn a_file_is_private_and_replaced_atomically() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(&dir.path().join("state")).unwrap();
        assert_eq!(state.read("a").unwrap(), None);
        state.write("a", b"one, which is longer").unwrap();
        state.write("a", b"two").unwrap();
        assert_eq!(state.read("a").unwrap().unwrap(), b"two");
        assert_eq!(fs::metadata(state.join("a")).unwrap().mode() & 0o777, 0o600);
        assert!(!state.join("a.next").exists());
    }
}
