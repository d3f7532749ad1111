//! Any text is a bundle with at least one root, or is rejected with an error message.
#![no_main]

use libfuzzer_sys::fuzz_target;
use merlon_certs::TrustRoots;
use merlon_config::snapshot::TrustBundle;

fuzz_target!(|text: &str| {
    let bundle = TrustBundle {
        trust_domain: "one.test".parse().expect("a constant"),
        roots: vec![text.to_owned()],
    };
    match TrustRoots::from_bundle(&bundle) {
        Ok(roots) => assert!(!roots.certificates().is_empty()),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
