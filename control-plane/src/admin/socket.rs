//! The Unix socket: for its owner only from the first moment.

use std::{fs, io, os::unix::fs::PermissionsExt as _, path::Path};

use tokio::net::{UnixListener, UnixStream};

/// Binds the socket with mode 0600. One that nobody answers at any more is replaced.
///
/// # Errors
/// When another process answers there, or the folder does not let us.
pub(crate) async fn bind(path: &Path) -> io::Result<UnixListener> {
    if UnixStream::connect(path).await.is_ok() {
        let message = format!("another process answers at {}", path.display());
        return Err(io::Error::new(io::ErrorKind::AddrInUse, message));
    }
    // Bound under another name, so that nobody can connect before the permissions stand.
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
    async fn the_socket_is_its_owners_alone_and_is_not_taken_from_a_living_process() {
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
