//! Where the programs are that tests start.

use std::{
    env,
    path::{Path, PathBuf},
};

/// A server that `make tools` installed: what its link leads to, since another user may start it who cannot read the
/// cache. Only one link is followed, for some programs ask what they were called as.
///
/// # Panics
/// When it is not installed, with the command that installs it. Nothing is skipped.
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
/// When it is gone.
pub fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    root.canonicalize().expect("the checkout")
}

/// The folder that `make tools` fills.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools")
}

/// One of our own binaries, as built beside this test.
///
/// # Panics
/// When it is not built, with the command that builds it.
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
