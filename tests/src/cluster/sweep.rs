//! Removal of the cgroups of clusters, whose names contain the process id of their owner.

use std::{
    fs,
    path::{Path, PathBuf},
};

const ROOT: &str = "/sys/fs/cgroup";
const PREFIX: &str = "merlon-test-";

/// The name of a cluster's cgroup: that of its folder, which contains the process id of its owner.
pub(super) fn cgroup(folder: &Path) -> String {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    assert!(
        name.starts_with(PREFIX),
        "{} does not begin with {PREFIX}",
        folder.display()
    );
    name.into_owned()
}

/// Creates it in every hierarchy, because the kubelet requires it to exist.
pub(super) fn make_cgroups(folder: &Path) {
    let name = cgroup(folder);
    for hierarchy in hierarchies() {
        // Containers do not use read-only hierarchies.
        let _ = fs::create_dir(hierarchy.join(&name));
    }
}

/// Removes it and the cgroups below. They are empty, because their processes have exited.
pub(super) fn remove_cgroups(name: &str) {
    for hierarchy in hierarchies() {
        remove(&hierarchy.join(name));
    }
}

/// Removes the cgroups of clusters whose owner no longer exists.
pub fn sweep() {
    for hierarchy in hierarchies() {
        for entry in fs::read_dir(hierarchy).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let owner = name
                .to_str()
                .and_then(|name| name.strip_prefix(PREFIX)?.split('-').next());
            if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
                remove(&entry.path());
            }
        }
    }
}

fn remove(cgroup: &Path) {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    // It may not exist in this hierarchy, or another process may remove it at the same time.
    let _ = fs::remove_dir(cgroup);
}

// Version 2 has one hierarchy, version 1 one for each controller, some under two names.
fn hierarchies() -> Vec<PathBuf> {
    if Path::new(ROOT).join("cgroup.controllers").exists() {
        return vec![ROOT.into()];
    }
    fs::read_dir(ROOT)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}
