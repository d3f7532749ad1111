//! What the end of every process leaves: cgroups, which bear their holder's mark, and folders.

use std::{
    fs,
    path::{Path, PathBuf},
};

const ROOT: &str = "/sys/fs/cgroup";
const PREFIX: &str = "merlon-test-";

/// The name of a cluster's cgroup: that of its folder, which bears the process id of its holder.
pub(super) fn cgroup(folder: &Path) -> String {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    assert!(
        name.starts_with(PREFIX),
        "{} bears no mark",
        folder.display()
    );
    name.into_owned()
}

/// Makes it in every hierarchy, since the kubelet puts nothing into one that is not there.
pub(super) fn make_cgroups(folder: &Path) {
    let name = cgroup(folder);
    for hierarchy in hierarchies() {
        // One that cannot be written to is not used for containers either.
        let _ = fs::create_dir(hierarchy.join(&name));
    }
}

/// Removes it with those inside it. They are empty, for everything that was in them has ended.
pub(super) fn remove_cgroups(name: &str) {
    for hierarchy in hierarchies() {
        remove(&hierarchy.join(name));
    }
}

/// Removes what clusters left whose holders have died without removing it.
pub fn sweep() {
    for hierarchy in hierarchies() {
        for entry in fs::read_dir(hierarchy).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let holder = name
                .to_str()
                .and_then(|name| name.strip_prefix(PREFIX)?.split('-').next());
            if holder.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
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
    // Not there in this hierarchy, or another process removes it too.
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
