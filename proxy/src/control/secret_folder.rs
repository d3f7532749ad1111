//! Granted secrets as files.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, symlink},
    path::{Path, PathBuf},
};

use merlon_config::snapshot::GrantedSecret;

use crate::state::secrets::Secrets;

/// Where the program finds its secrets: a folder for each grant, in it a file for each key.
///
/// A grant's folder is a link to one that never changes, so that whoever reads several files sees those of one version.
#[derive(Debug)]
pub(crate) struct SecretFolder(PathBuf);

impl SecretFolder {
    /// # Errors
    /// It is not there, or nothing can be written into it.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let this = Self(path.to_owned());
        let trial = this.hidden("trial");
        fs::create_dir(&trial)?;
        fs::remove_dir(&trial)?;
        Ok(this)
    }

    /// Makes the files be what was granted. What was not read yet is left as it is.
    ///
    /// # Errors
    /// Something cannot be written; the rest was.
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

    /// A name that nothing has, which programs pass over.
    fn hidden(&self, name: &str) -> PathBuf {
        let mut bytes = [0; 8];
        // Were it ever to fail, two names would be the same, and making the second one fail.
        let _ = aws_lc_rs::rand::fill(&mut bytes);
        self.0
            .join(format!("..{name}.{:016x}", u64::from_be_bytes(bytes)))
    }

    /// Removes what is no longer granted, and what no link leads to.
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

/// Whether a folder has exactly these files.
pub(crate) fn holds(folder: &Path, content: &BTreeMap<&str, &str>) -> bool {
    let Ok(entries) = fs::read_dir(folder) else {
        return false;
    };
    entries.count() == content.len()
        && content.iter().all(|(key, value)| {
            fs::read(folder.join(key)).is_ok_and(|bytes| bytes == value.as_bytes())
        })
}

/// A key comes from Vault: as a path it must lead nowhere else.
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
    fn a_program_finds_a_file_for_each_key_and_those_of_one_version_together() {
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
        assert_eq!(listed(place.path()).len(), 2, "the old version is gone");
        // Nothing new: nothing is touched.
        let now = fs::read_link(&db).unwrap();
        folder
            .write(&files(&[]), &secrets(&[("user", "a"), ("password", "two")]))
            .unwrap();
        assert_eq!(fs::read_link(&db).unwrap(), now);
        // Not read any more: what is there stays. Not granted any more: it goes.
        folder.write(&files(&[]), &Secrets::new()).unwrap();
        assert_eq!(fs::read_to_string(db.join("password")).unwrap(), "two");
        folder.write(&[], &Secrets::new()).unwrap();
        assert!(listed(place.path()).is_empty());
    }

    #[test]
    fn only_the_keys_that_are_asked_for_become_files_and_none_leads_elsewhere() {
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
    fn what_a_crash_left_behind_is_removed() {
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
