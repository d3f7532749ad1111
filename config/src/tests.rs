use std::path::Path;

#[test]
fn the_readme_lists_every_log_event_with_its_levels_and_fields() {
    let report = merlon_layers::log_events::check(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap();
    assert!(report.events >= 1, "{report}");
    assert!(report.violations.is_empty(), "{report}");
}
