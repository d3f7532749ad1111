use std::path::PathBuf;

use super::*;

const README: &str = "
# a crate

## Where things are

| folder | what lives there | may import |
|---|---|---|
| `main.rs` `app.rs` | the process | everything |
| `source.rs` `source/` | sources | `push` and below; not `app` |
| `push/` | streams | `transport`, `config` |
| `transport.rs` | peers | `state` |
| `state/` | data | nothing of this crate |
| `config.rs` | ground | nothing of this crate |

## Other
";

const ALL: [(&str, &str); 7] = [
    ("app.rs", ""),
    ("source.rs", ""),
    ("push/stream.rs", ""),
    ("state/store.rs", ""),
    ("config.rs", ""),
    ("main.rs", ""),
    ("transport.rs", ""),
];

/// Checks the modules of the table with `text` appended to `file`.
fn checked(file: &str, text: &str) -> Vec<String> {
    let mut sources: Vec<(PathBuf, String)> = ALL
        .iter()
        .map(|(file, text)| (PathBuf::from(file), (*text).to_owned()))
        .collect();
    sources.push((PathBuf::from(file), text.to_owned()));
    check_sources(README, &sources).violations
}

fn paths(module: &str, text: &str) -> Vec<String> {
    let module: Vec<String> = module.split("::").map(str::to_owned).collect();
    let found = imports(&module, text);
    found.iter().map(|path| path.absolute.join("::")).collect()
}

#[test]
fn an_import_that_the_table_does_not_allow_is_reported_with_file_and_path() {
    let found = checked("state/store.rs", "\nuse crate::push::Registry;\n");
    assert_eq!(
        found,
        ["state/store.rs:2: `crate::push::Registry`: `state` may not import `push`"]
    );
}

#[test]
fn every_form_of_path_is_checked() {
    let forbidden = [
        "use crate::{config::Config, push::{self, Registry}};",
        "use super::super::push::Registry;",
        "pub(in crate::push) struct Store;",
        "fn of(registry: &crate::push::Registry) {}",
        "mod inner { use super::super::super::push::Registry; }",
        "use crate::{config, config::{Config as C, File}, push};",
        "use crate::push as streams;",
        "use crate::push::*;",
        "macro_rules! m { () => { $crate::push::send() } }",
        "#[cfg(test)] mod tests { use crate::push::Registry; }",
    ];
    for text in forbidden {
        let found = checked("state/store.rs", text);
        assert!(
            found.iter().any(|found| found.ends_with("`push`")),
            "{text}: {found:?}"
        );
    }
}

#[test]
fn allowed_imports_and_paths_within_a_module_pass() {
    let allowed = [
        (
            "source/files.rs",
            "use crate::{push::Registry, state::Store, config};",
        ),
        (
            "source/files.rs",
            "use super::status::Status; pub(super) fn a() {} pub(crate) fn b() {}",
        ),
        (
            "push/stream.rs",
            "use crate::transport::Peer; use crate::config::Config;",
        ),
        ("app.rs", "use crate::{source, push, state, config};"),
        ("main.rs", "use crate::app;"),
        ("state/store.rs", "use crate::tests::Fixture;"),
        ("tests/fixtures.rs", "use crate::app::run;"),
        ("lib.rs", "pub use self::app::run; use crate::push;"),
    ];
    for (file, text) in allowed {
        assert_eq!(checked(file, text), [""; 0], "{file}: {text}");
    }
}

#[test]
fn comments_strings_and_lifetimes_hide_no_import_and_are_none() {
    let text = r##"
        //! [`crate::push`]
        /* crate::push /* nested crate::push */ */
        const A: &str = "crate::push \" crate::push";
        const B: &str = r#"crate::push " crate::push"#;
        const C: (char, char, char) = ('"', '\'', '\u{22}');
        fn f<'a>(x: &'a str) -> &'a str { 'outer: loop { break 'outer } x }
        use crate::config::r#type;
    "##;
    assert_eq!(paths("state::store", text), ["config::r"]);
}

#[test]
fn paths_are_resolved_from_the_crate_root() {
    let text = "
        use super::Store;
        use super::super::push::{Registry, session::Session};
        mod inner { use super::super::Other; mod deep { use crate::a; } fn f() { if x {} } }
        use super::After;
        use crate::{self, b::{c::*, self}, super_ as d};
    ";
    let expected = [
        "state::Store",
        "push::Registry",
        "push::session::Session",
        "state::Other",
        "a",
        "state::After",
        "",
        "b::c::*",
        "b",
        "super_",
    ];
    assert_eq!(paths("state::store", text), expected);
}

#[test]
fn an_import_from_the_crate_root_is_reported() {
    for text in ["use super::*;", "use crate::*;", "use crate::{self};"] {
        let found = checked("config.rs", text);
        assert!(
            found.iter().any(|found| found.ends_with("crate root")),
            "{text}: {found:?}"
        );
    }
}

#[test]
fn a_module_without_a_row_and_a_row_without_a_module_are_reported() {
    let found = checked("other/file.rs", "");
    assert_eq!(
        found,
        ["README.md: the table has no row for the module `other`"]
    );
    let readme = README.replace("`config.rs`", "`config.rs` `gone.rs`");
    let sources = ALL.map(|(file, text)| (PathBuf::from(file), text.to_owned()));
    let found = check_sources(&readme, &sources).violations;
    assert_eq!(
        found,
        ["README.md: the table names `gone`, and there is no such module"]
    );
}

#[test]
fn a_circle_in_the_table_is_reported() {
    let readme = README.replace("| `transport`, `config` |", "| `transport`, `source` |");
    let problem = Table::parse(&readme).unwrap_err();
    assert_eq!(problem, "the table has a circle: push → source → push");
}

#[test]
fn a_circle_within_one_row_is_reported() {
    let mut sources = ALL.map(|(file, text)| (PathBuf::from(file), text.to_owned()));
    sources[0].1 = "use crate::main::x;".to_owned();
    sources[5].1 = "use crate::app::x;".to_owned();
    let found = check_sources(README, &sources).violations;
    assert_eq!(
        found,
        ["modules import each other in a circle: app → main → app"]
    );
}

#[test]
fn a_readme_without_the_table_is_reported() {
    let found = check_sources("# a crate\n", &[]).violations;
    assert_eq!(
        found,
        ["README.md: no table in a section \"## Where things are\""]
    );
}

#[test]
fn below_adds_everything_under_the_named_rows() {
    let table = Table::parse(README).unwrap();
    assert!(table.allows("source", "state"));
    assert!(table.allows("source", "config"));
    assert!(!table.allows("source", "app"));
    assert!(
        !table.allows("push", "state"),
        "only named rows without `and below`"
    );
    assert!(!table.allows("push", "source"));
    assert!(!table.allows("config", "state"));
}

#[test]
fn this_crate_on_disk_follows_its_own_table() {
    let report = check(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap();
    assert!(report.violations.is_empty(), "{report}");
    assert!(report.paths > 0, "{report}");
}
