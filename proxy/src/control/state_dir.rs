//! The directory in which a restarted proxy finds its identity and its last good state.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{
        DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
    },
    path::{Path, PathBuf},
};

/// A directory that only the owner of the process may enter, held by one process at a time.
#[derive(Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
    /// Locked while the process lives.
    _lock: File,
}

/// Why a directory cannot hold state.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// It is open to others.
    #[error(
        "others may enter it (mode {0:04o}): a private key would be kept there; `chmod 700` it"
    )]
    Open(u32),
    /// It belongs to another user.
    #[error("it belongs to another user ({0})")]
    Owner(u32),
    /// Another process uses it.
    #[error("another process uses it")]
    InUse,
    /// The system says no.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The largest file that is read back.
const LIMIT: u64 = 128 << 20;

impl StateDir {
    /// Opens or makes the directory (mode 0700), and takes it for this process.
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

    /// A file in it.
    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Reads a file whole; `None` when there is none.
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

    /// Puts `bytes` in place of a file, whole or not at all, also when the machine stops in between (mode 0600).
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
            // A full disk: what is half written only takes up more of it.
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
    fn a_directory_that_others_may_enter_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o750)).unwrap();
        assert!(matches!(
            StateDir::open(dir.path()),
            Err(StateDirError::Open(0o750))
        ));
    }

    #[test]
    fn two_processes_do_not_share_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let first = StateDir::open(&path).unwrap();
        assert!(matches!(StateDir::open(&path), Err(StateDirError::InUse)));
        drop(first);
        assert!(StateDir::open(&path).is_ok());
    }

    #[test]
    fn a_file_is_private_and_replaced_whole() {
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
