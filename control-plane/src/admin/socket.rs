//! The Unix socket, accessible only to its owner from the moment it exists.

use std::{fs, io, os::unix::fs::PermissionsExt as _, path::Path};

use tokio::net::{UnixListener, UnixStream};

/// Binds the socket with mode 0600. A stale socket is replaced.
///
/// # Errors
/// Another process listens there, or the directory is not writable.
pub(crate) async fn bind(path: &Path) -> io::Result<UnixListener> {
    if UnixStream::connect(path).await.is_ok() {
        let message = format!("another process listens at {}", path.display());
        return Err(io::Error::new(io::ErrorKind::AddrInUse, message));
    }
    // Bound under a temporary name, so that no client can connect before the permissions are set.
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    let unfinished = Path::new(&name);
    let _ = fs::remove_file(unfinished);
    let listener = UnixListener::bind(unfinished)?;
    let named = fs::set_permissions(unfinished, fs::Permissions::from_mode(0o600))
        .and_then(|()| fs::rename(unfinished, path));
    if let Err(error) = named {
        let _ = fs::remove_file(unfinished);
        return Err(error);
    }
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_is_private_to_its_owner_and_is_not_taken_from_a_live_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let listener = bind(&path).await.unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(
            bind(&path).await.unwrap_err().kind(),
            io::ErrorKind::AddrInUse
        );
        drop(listener);
        bind(&path).await.unwrap();
    }
}
