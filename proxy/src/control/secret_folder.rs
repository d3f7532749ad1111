//! Granted secrets as files.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, symlink},
    path::{Path, PathBuf},
};

use merlon_config::snapshot::GrantedSecret;

use crate::state::{secrets::Secrets, snapshot::Snapshot};

/// The directory of the program's secrets: one folder per grant with one file per key.
///
/// The folder of a grant is a symbolic link to an immutable folder, so that all files that a program reads are of one
/// version.
#[derive(Debug)]
pub(crate) struct SecretFolder(PathBuf);

impl SecretFolder {
    /// # Errors
    /// The directory does not exist or is not writable.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let this = Self(path.to_owned());
        let trial = this.hidden("trial");
        fs::create_dir(&trial)?;
        fs::remove_dir(&trial)?;
        Ok(this)
    }

    /// Writes the files of the granted secrets. Secrets that have not been read yet are left unchanged.
    ///
    /// # Errors
    /// A file could not be written; all others were.
    pub(crate) fn write(&self, granted: &[GrantedSecret], secrets: &Secrets) -> io::Result<()> {
        let mut result = Ok(());
        let mut wanted = BTreeSet::new();
        for grant in granted {
            let Some(files) = &grant.files else {
                continue;
            };
            let content = secrets.get(&grant.name).map(|secret| {
                let keys = secret.data.iter();
                let keys = keys.filter(|(key, _)| {
                    (files.keys.is_empty() || files.keys.contains(key)) && is_file_name(key)
                });
                keys.map(|(key, value)| (key.as_str(), value.as_str()))
                    .collect::<BTreeMap<_, _>>()
            });
            if let Some(content) = &content
                && let Err(error) = self.replace(grant.name.name.as_str(), content)
            {
                result = Err(error);
            }
            wanted.insert(grant.name.name.as_str());
        }
        self.tidy(&wanted).and(result)
    }

    fn replace(&self, name: &str, content: &BTreeMap<&str, &str>) -> io::Result<()> {
        let link = self.0.join(name);
        if holds(&link, content) {
            return Ok(());
        }
        let folder = self.hidden(name);
        fs::DirBuilder::new().mode(0o755).create(&folder)?;
        for (key, value) in content {
            use io::Write as _;
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o444)
                .open(folder.join(key))?;
            file.write_all(value.as_bytes())?;
        }
        let new = self.hidden("link");
        let target = folder.file_name().map(PathBuf::from).unwrap_or_default();
        symlink(target, &new)?;
        fs::rename(&new, &link)
    }

    /// An unused hidden name, which programs ignore.
    fn hidden(&self, name: &str) -> PathBuf {
        let mut bytes = [0; 8];
        // On failure two names could be equal, and creating the second one would fail.
        let _ = aws_lc_rs::rand::fill(&mut bytes);
        self.0
            .join(format!("..{name}.{:016x}", u64::from_be_bytes(bytes)))
    }

    /// Removes folders that are no longer granted, and folders without a link.
    fn tidy(&self, wanted: &BTreeSet<&str>) -> io::Result<()> {
        let mut folders = Vec::new();
        let mut current = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            let entry = entry?;
            let name = entry.file_name();
            let kind = entry.file_type()?;
            let known = name.to_str().is_some_and(|name| wanted.contains(name));
            if kind.is_symlink() && !known {
                fs::remove_file(entry.path())?;
            } else if kind.is_symlink() {
                current.push(fs::read_link(entry.path())?);
            } else if kind.is_dir() && name.as_encoded_bytes().starts_with(b"..") {
                folders.push(name);
            }
        }
        for folder in folders {
            if !current.contains(&PathBuf::from(&folder)) {
                fs::remove_dir_all(self.0.join(folder))?;
            }
        }
        Ok(())
    }
}

/// Writes the granted secrets of a snapshot for the program.
pub(super) fn write_granted(folder: Option<&SecretFolder>, snapshot: Option<&Snapshot>) {
    let Some(snapshot) = snapshot else {
        return;
    };
    let granted = &snapshot.workload.secrets;
    let Some(folder) = folder else {
        if granted.iter().any(|grant| grant.files.is_some()) {
            tracing::warn!(
                hint = "annotate the pod with `merlon.io/mount-secrets: \"true\"`, or set `--secrets-dir`",
                "secret.no_folder"
            );
        }
        return;
    };
    if let Err(error) = folder.write(granted, &snapshot.secrets) {
        tracing::error!(%error, "secret.not_written");
    }
}

/// Whether a folder contains exactly these files.
pub(crate) fn holds(folder: &Path, content: &BTreeMap<&str, &str>) -> bool {
    let Ok(entries) = fs::read_dir(folder) else {
        return false;
    };
    entries.count() == content.len()
        && content.iter().all(|(key, value)| {
            fs::read(folder.join(key)).is_ok_and(|bytes| bytes == value.as_bytes())
        })
}

/// Keys come from Vault, so they must not be paths to other places.
pub(crate) fn is_file_name(key: &str) -> bool {
    let good = (1..=253).contains(&key.len())
        && !key.starts_with("..")
        && key != "."
        && key
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    if !good {
        tracing::warn!(key = %key.escape_debug(), "secret.key_left_out");
    }
    good
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::secrets::tests::{files, secrets};

    fn listed(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn each_key_is_a_file_and_all_files_are_of_one_version() {
        let place = tempfile::tempdir().unwrap();
        let folder = SecretFolder::open(place.path()).unwrap();
        let db = place.path().join("db");
        folder
            .write(&files(&[]), &secrets(&[("user", "a"), ("password", "one")]))
            .unwrap();
        assert_eq!(listed(&db), ["password", "user"]);
        let old = fs::read_link(&db).unwrap();
        folder
            .write(&files(&[]), &secrets(&[("user", "a"), ("password", "two")]))
            .unwrap();
        assert_eq!(fs::read_to_string(db.join("password")).unwrap(), "two");
        assert_ne!(fs::read_link(&db).unwrap(), old);
        assert_eq!(listed(place.path()).len(), 2, "the old version is removed");
        // No change: nothing is written.
        let now = fs::read_link(&db).unwrap();
        folder
            .write(&files(&[]), &secrets(&[("user", "a"), ("password", "two")]))
            .unwrap();
        assert_eq!(fs::read_link(&db).unwrap(), now);
        // A secret that cannot be read stays. A secret without a grant is removed.
        folder.write(&files(&[]), &Secrets::new()).unwrap();
        assert_eq!(fs::read_to_string(db.join("password")).unwrap(), "two");
        folder.write(&[], &Secrets::new()).unwrap();
        assert!(listed(place.path()).is_empty());
    }

    #[test]
    fn only_selected_keys_with_valid_file_names_become_files() {
        let place = tempfile::tempdir().unwrap();
        let folder = SecretFolder::open(place.path()).unwrap();
        let all = secrets(&[
            ("user", "a"),
            ("password", "b"),
            ("../user", "c"),
            ("a/b", "d"),
            ("..", "e"),
            ("", "f"),
        ]);
        folder
            .write(&files(&["password", "../user"]), &all)
            .unwrap();
        assert_eq!(listed(&place.path().join("db")), ["password"]);
        folder.write(&files(&[]), &all).unwrap();
        assert_eq!(listed(&place.path().join("db")), ["password", "user"]);
    }

    #[test]
    fn leftovers_of_a_crash_are_removed() {
        let place = tempfile::tempdir().unwrap();
        fs::create_dir(place.path().join("..db.0000000000000000")).unwrap();
        symlink("..db.0000000000000000", place.path().join("..link.0")).unwrap();
        let folder = SecretFolder::open(place.path()).unwrap();
        folder
            .write(&files(&[]), &secrets(&[("user", "a")]))
            .unwrap();
        assert_eq!(listed(place.path()).len(), 2);
    }
}
