//! The state directory, which one control plane uses exclusively.

use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

/// Why the state directory cannot be used.
#[derive(Debug)]
pub(crate) enum StateDirError {
    /// It cannot be created, written or locked.
    Unusable { path: PathBuf, source: io::Error },
    /// Another process holds it.
    Taken(PathBuf),
}

/// Creates the directory if needed, and locks it until the returned file is closed.
pub(crate) fn take_state_dir(path: &Path) -> Result<File, StateDirError> {
    let failed = |source| StateDirError::Unusable {
        path: path.to_owned(),
        source,
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(failed)?;
    // It holds a signing key and hashes of secrets. This also applies to an existing directory.
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(failed)?;
    let lock = File::create(path.join("lock")).map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(StateDirError::Taken(path.to_owned())),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}
