//! Any text is the start of a process, or is refused with reasons that print.
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
