use std::path::Path;

#[test]
fn imports_run_one_way_as_the_table_in_the_readme_says() {
    let report = merlon_layers::check(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap();
    assert!(report.violations.is_empty(), "{report}");
    assert!(
        report.paths >= 200,
        "expected at least 200 import paths: {report}"
    );
}
