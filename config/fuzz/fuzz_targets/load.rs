//! Any text, together with a valid MeshConfig, is accepted, or rejected with reasons that can be printed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use merlon_config::load::load_texts;

const MESH: &str = include_str!("../../examples/shop/mesh.yaml");

fuzz_target!(|text: &str| {
    match load_texts([("mesh.yaml", MESH), ("any.yaml", text)]) {
        Ok(resources) => {
            for resource in &resources.list {
                assert!(resources.locate(resource, "spec").is_some());
                assert!(resources.locate_in_text(resource, "spec.policies", 2, 3).is_some());
            }
        }
        Err(report) => {
            assert!(report.has_errors());
            assert!(!report.to_string().contains('\u{1b}'));
        }
    }
});
