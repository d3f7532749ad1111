//! Folders for what tests write.

use std::{fs, path::Path, sync::LazyLock};

use tempfile::TempDir;

const PREFIX: &str = "merlon-test-";

// What several tests share stands in statics, which nobody drops: its folders stay, until the next run finds that who
// made them is gone.
static SWEPT: LazyLock<()> = LazyLock::new(|| {
    for entry in fs::read_dir(std::env::temp_dir())
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = entry.file_name();
        let maker = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX)?.split('-').next());
        if maker.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // Another test binary may be sweeping too.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
});

/// A folder of its own, with a short path: sockets are made in it.
///
/// # Panics
/// When it cannot be made.
pub fn fresh() -> TempDir {
    LazyLock::force(&SWEPT);
    tempfile::Builder::new()
        .prefix(&format!("{PREFIX}{}-", std::process::id()))
        .tempdir()
        .expect("a folder")
}
