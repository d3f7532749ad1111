//! Resource and settings files.

use merlon_config::{
    bootstrap::{ControlPlaneBootstrap, ProxyBootstrap},
    injection::InjectionSettings,
    load::load_texts,
};

use crate::input::text;

const MESH: &str = include_str!("../../config/examples/shop/mesh.yaml");

/// Any text, together with a valid MeshConfig, is accepted, or rejected with reasons that can be printed.
pub(crate) fn load(bytes: &[u8]) {
    text(bytes, |text| {
        match load_texts([("mesh.yaml", MESH), ("any.yaml", text)]) {
            Ok(resources) => {
                for resource in &resources.list {
                    assert!(resources.locate(resource, "spec").is_some());
                    let place = resources.locate_in_text(resource, "spec.policies", 2, 3);
                    assert!(place.is_some());
                }
            }
            Err(report) => {
                assert!(report.has_errors());
                assert!(!report.to_string().contains('\u{1b}'));
            }
        }
    });
}

/// Any text is a valid settings file of a process, or is rejected with reasons that can be printed.
pub(crate) fn bootstrap(bytes: &[u8]) {
    text(bytes, |text| {
        if let Err(report) = ProxyBootstrap::parse("any.yaml", text) {
            assert!(!report.to_string().is_empty());
        }
        if let Err(report) = ControlPlaneBootstrap::parse("any.yaml", text) {
            assert!(!report.to_string().is_empty());
        }
        if let Err(report) = InjectionSettings::parse("any.yaml", text) {
            assert!(!report.to_string().is_empty());
        }
    });
}
