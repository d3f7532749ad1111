//! The folder that holds everything of a demo: kept on wish, else gone with it.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use crate::{failure::Failure, output::eprint_line};

const PREFIX: &str = "merlon-demo-";
/// Locked as long as the demo lives, by the kernel's doing also when it is killed.
const CLAIM: &str = ".claim";

/// A Unix socket's path has 107 bytes at most (103 on macOS), and the longest here is
/// `payments-sidecar-state/admin.sock`.
const LONGEST_FOLDER: usize = 68;

/// Where everything is.
pub(crate) enum Folder {
    Kept(PathBuf),
    /// Gone with the demo. What a killed one left is removed by the next.
    Passing(TempDir, Claim),
}

impl Folder {
    pub(crate) fn make(keep: Option<&Path>) -> Result<Self, Failure> {
        let folder = Self::choose(keep)?;
        let bytes = folder.path().as_os_str().len();
        if bytes > LONGEST_FOLDER {
            return Err(Failure::usage(format!(
                "{} has {bytes} bytes; Unix sockets in it need a path of {LONGEST_FOLDER} at most",
                folder.path().display()
            ))
            .hint("name a shorter one by `--keep`, or by TMPDIR"));
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
            let above = std::env::temp_dir();
            sweep(&above);
            let made = tempfile::Builder::new()
                .prefix(PREFIX)
                .tempdir_in(&above)
                .and_then(|made| Claim::make(made.path()).map(|claim| Self::Passing(made, claim)));
            return made.map_err(|error| failed(&above, error));
        };
        private_folder(path)?;
        let path = path.canonicalize().map_err(|error| failed(path, error))?;
        let mut entries = fs::read_dir(&path).map_err(|error| failed(&path, error))?;
        match entries.next() {
            None => Ok(Self::Kept(path)),
            Some(_) => Err(Failure::usage(format!("{} is not empty", path.display()))
                .hint("name a folder that does not exist yet")),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Kept(path) => path,
            Self::Passing(folder, _) => folder.path(),
        }
    }

    pub(crate) fn remove(self) -> Result<(), Failure> {
        match self {
            Self::Kept(path) => {
                eprint_line(&format!("kept {}", path.display()));
                Ok(())
            }
            Self::Passing(folder, _claim) => {
                let path = folder.path().to_owned();
                folder.close().map_err(|error| {
                    Failure::runtime(format!("cannot remove {}: {error}", path.display()))
                })
            }
        }
    }
}

/// The sign that a demo lives in its folder.
#[derive(Debug)]
pub(crate) struct Claim {
    _locked: File,
}

impl Claim {
    fn make(folder: &Path) -> io::Result<Self> {
        // It has its name only once it is locked, so that nobody finds it free.
        let aside = folder.join(format!("{CLAIM}.new"));
        let file = File::create_new(&aside)?;
        file.lock()?;
        fs::rename(&aside, folder.join(CLAIM))?;
        Ok(Self { _locked: file })
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

/// Removes what demos of this user left that were killed. Whatever cannot be removed stays: it is in nobody's way.
fn sweep(above: &Path) {
    let own = rustix::process::geteuid().as_raw();
    let entries = fs::read_dir(above).into_iter().flatten().flatten();
    for entry in entries {
        let named = entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(PREFIX.as_bytes());
        // Without following a link: what it leads to is not a demo's.
        let is_own = entry
            .metadata()
            .is_ok_and(|about| about.is_dir() && about.uid() == own);
        if !named || !is_own {
            continue;
        }
        let folder = entry.path();
        let claim = File::options()
            .read(true)
            .write(true)
            .open(folder.join(CLAIM));
        if claim.is_ok_and(|claim| claim.try_lock().is_ok()) {
            let _ = fs::remove_dir_all(&folder);
        }
    }
}
