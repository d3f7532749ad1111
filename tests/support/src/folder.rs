//! Temporary folders for tests.

use std::{fs, path::Path, sync::LazyLock};

use tempfile::TempDir;

const PREFIX: &str = "merlon-test-";

// Servers that several tests share are in statics, which are never dropped, so their folders stay. The next run removes
// folders whose process no longer exists.
static SWEPT: LazyLock<()> = LazyLock::new(|| {
    for entry in fs::read_dir(std::env::temp_dir())
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = entry.file_name();
        let owner = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX)?.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // Another test binary may remove it at the same time.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
});

/// A new temporary folder. Its path is short, because sockets are created in it.
///
/// # Panics
/// If it cannot be created.
pub fn fresh() -> TempDir {
    LazyLock::force(&SWEPT);
    tempfile::Builder::new()
        .prefix(&format!("{PREFIX}{}-", std::process::id()))
        .tempdir()
        .expect("a folder")
}
