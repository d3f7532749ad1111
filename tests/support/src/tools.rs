//! Paths of the programs that tests start.

use std::{
    env,
    path::{Path, PathBuf},
};

/// A program that `make tools` installed. Returns the target of its link, because the user that runs it may be unable to
/// read the cache. Only one link is followed, because some programs check the name they were started as.
///
/// # Panics
/// If it is not installed; the message contains the command that installs it.
pub fn installed(name: &str) -> PathBuf {
    let link = folder().join("bin").join(name);
    assert!(
        link.exists(),
        "`{name}` is not installed (looked for {}); install it with: make tools",
        link.display()
    );
    std::fs::read_link(&link).unwrap_or(link)
}

/// The root of the checkout.
///
/// # Panics
/// If the folder does not exist.
pub fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    root.canonicalize().expect("the checkout")
}

/// The folder that `make tools` installs to.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools")
}

/// A binary of this workspace, from the folder that this test was built to.
///
/// # Panics
/// If it is not built; the message contains the command that builds it.
pub fn binary(name: &str) -> PathBuf {
    let test = env::current_exe().expect("the path of this test");
    // target/<triple>/debug/deps/<test> or target/<triple>/debug/examples/<example>
    let built = test
        .ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file());
    built
        .unwrap_or_else(|| panic!("`{name}` is not built; build it with: cargo build --bin {name}"))
}
