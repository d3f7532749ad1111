//! Any text is a valid bootstrap file, or is rejected with reasons that can be printed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use merlon_config::bootstrap::{ControlPlaneBootstrap, ProxyBootstrap};

fuzz_target!(|text: &str| {
    if let Err(report) = ProxyBootstrap::parse("any.yaml", text) {
        assert!(!report.to_string().is_empty());
    }
    if let Err(report) = ControlPlaneBootstrap::parse("any.yaml", text) {
        assert!(!report.to_string().is_empty());
    }
});
