//! What tests may do on this machine.

use std::io::{self, Write as _};

/// Whether tests that need root for something can run. Where they cannot, it says so, loudly; in CI that is a failure.
///
/// # Panics
/// In CI without root.
pub fn has_root(tests: &str, what: &str) -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    assert!(
        std::env::var_os("CI").is_none(),
        "{what} need root, and in CI nothing is skipped"
    );
    // Past the test harness, which would keep it for itself.
    let _ = writeln!(
        io::stderr(),
        "NOT RUN: {tests} need root for {what}; run them with: sudo -E make test"
    );
    false
}
