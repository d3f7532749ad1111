//! The permissions of tests on this machine.

use std::io::{self, Write as _};

/// Whether tests that need root for `what` can run. Without root, prints that they did not run.
///
/// # Panics
/// In CI without root.
pub fn has_root(tests: &str, what: &str) -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    assert!(
        std::env::var_os("CI").is_none(),
        "{what} need root, and in CI no test is skipped"
    );
    // Written directly, because the test runner captures `eprintln!`.
    let _ = writeln!(
        io::stderr(),
        "NOT RUN: {tests} need root for {what}; run them with: sudo --preserve-env=PATH,HOME make test"
    );
    false
}
