//! The Markdown pages match the tree: links have a target, and `docs/capabilities.md` names tests that exist.
//! These tests need no servers.

use std::{
    collections::BTreeSet,
    fs,
    path::{Component, Path, PathBuf},
};

/// Roughly the number of listed capabilities: with fewer rows, the page is not parsed correctly.
const LEAST_ROWS: usize = 60;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the workspace")
        .to_owned()
}

/// All files below a folder with this extension, except build output and installed tools.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let entry = entry.expect("an entry");
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        if entry.file_type().expect("a type").is_dir() {
            let skipped = matches!(&*name, "target" | "node_modules" | ".tools" | ".git");
            if !skipped {
                found.extend(files(&path, extension));
            }
        } else if path.extension().is_some_and(|it| it == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The names of the functions in a source file that have a test attribute.
fn tests_in(source: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut is_test = false;
    for line in source.lines().map(str::trim) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_test = true;
        } else if let Some((_, rest)) = line.split_once("fn ")
            && !line.starts_with("//")
        {
            if is_test {
                let name = rest.split(['(', '<']).next().unwrap_or_default();
                found.insert(name.to_owned());
            }
            is_test = false;
        }
    }
    found
}

/// The tests of a suite (a module of a target below `tests/suites`) or of a crate, named as in Rust. Empty if neither exists.
fn tests_of(owner: &str) -> BTreeSet<String> {
    let suites = root().join("tests/suites");
    let mut sources: Vec<_> = files(&suites, "rs")
        .into_iter()
        .filter(|source| {
            let module = source
                .strip_prefix(&suites)
                .expect("a file below")
                .with_extension("");
            // `<target>/<suite>.rs`, `<target>/<suite>/<part>.rs`.
            module
                .components()
                .nth(1)
                .is_some_and(|part| part.as_os_str() == owner)
        })
        .collect();
    for manifest in files(&root(), "toml") {
        let text = fs::read_to_string(&manifest).expect("a manifest");
        let named = format!("\nname = \"{}\"", owner.replace('_', "-"));
        if manifest.ends_with("Cargo.toml")
            && text.starts_with("[package]")
            && text.contains(&named)
        {
            for folder in ["src", "tests"] {
                let folder = manifest.with_file_name(folder);
                if folder.is_dir() {
                    sources.extend(files(&folder, "rs"));
                }
            }
        }
    }
    let read = |source: &PathBuf| fs::read_to_string(source).expect("a source");
    sources
        .iter()
        .map(read)
        .flat_map(|text| tests_in(&text))
        .collect()
}

#[test]
fn every_capability_names_tests_that_exist() {
    let page = fs::read_to_string(root().join("docs/capabilities.md")).expect("the page");
    let mut problems = Vec::new();
    let mut rows = 0;
    for line in page.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [capability, state, tests] = cells[..] else {
            problems.push(format!("three columns are needed: {line}"));
            continue;
        };
        if state == "state" {
            continue;
        }
        rows += 1;
        let named: Vec<&str> = tests
            .split('`')
            .filter(|name| name.contains("::"))
            .collect();
        match state {
            "works" | "partly" if named.is_empty() => {
                problems.push(format!("{capability}: {state}, and no test shows it"));
            }
            "works" | "partly" | "not yet" => {}
            other => problems.push(format!("{capability}: the state `{other}` does not exist")),
        }
        for name in named {
            let (owner, test) = name.rsplit_once("::").expect("it contains one");
            if !tests_of(owner).contains(test) {
                problems.push(format!("{capability}: there is no test `{name}`"));
            }
        }
    }
    assert!(rows >= LEAST_ROWS, "only {rows} rows were found");
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// The crates of the workspace that a manifest has under `[dependencies]`, without `merlon-`.
fn dependencies_in(manifest: &str) -> BTreeSet<&str> {
    let mut section = "";
    let mut found = BTreeSet::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            section = line;
        } else if section == "[dependencies]"
            && let Some(rest) = line.strip_prefix("merlon-")
        {
            found.extend(rest.split(['.', ' ', '=']).next());
        }
    }
    found
}

#[test]
fn the_table_of_crates_in_the_design_page_lists_their_dependencies() {
    let page = fs::read_to_string(root().join("docs/design.md")).expect("the page");
    let workspace = fs::read_to_string(root().join("Cargo.toml")).expect("the workspace");
    let mut rows = 0;
    for line in page.lines().filter(|line| line.starts_with("| [`")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [folder, _, _, depends_on] = cells[..] else {
            panic!("four columns are needed: {line}")
        };
        let folder = folder.split('`').nth(1).expect("a folder");
        let manifest = root().join(folder).join("Cargo.toml");
        let manifest = fs::read_to_string(&manifest).expect("the crate's manifest");
        let listed = depends_on.split(", ").filter(|name| *name != "–");
        assert_eq!(
            listed.collect::<BTreeSet<_>>(),
            dependencies_in(&manifest),
            "{folder}"
        );
        rows += 1;
    }
    let members = workspace
        .split("members = [")
        .nth(1)
        .and_then(|rest| rest.split(']').next())
        .expect("the members");
    assert_eq!(
        rows,
        members.matches('"').count() / 2,
        "a row for each crate"
    );
}

#[test]
fn every_path_in_the_guide_for_contributors_exists() {
    let page = fs::read_to_string(root().join("CONTRIBUTING.md")).expect("the page");
    let mut missing = Vec::new();
    let mut paths = 0;
    for code in page.split('`').skip(1).step_by(2) {
        let path = code.split_whitespace().next().unwrap_or_default();
        let folder = path.split('/').next().unwrap_or_default();
        let is_path = path.contains('/') && !path.contains(['<', '*']) && !folder.is_empty();
        if is_path && root().join(folder).is_dir() {
            paths += 1;
            if !root().join(path).exists() {
                missing.push(path);
            }
        }
    }
    assert!(paths >= 20, "only {paths} paths were found");
    assert!(missing.is_empty(), "these do not exist: {missing:?}");
}

/// The page without code, where brackets are not links.
fn prose(page: &str) -> String {
    let mut fenced = false;
    let outside = page.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    });
    let lines: Vec<&str> = outside.collect();
    let text = lines.join("\n");
    // Every second piece between backticks is code; a link's text may be code, its target not.
    text.split('`').step_by(2).collect::<Vec<_>>().join("")
}

/// The anchors of a page's headings, as GitHub and most renderers make them.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings = page.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let text = line.trim_start_matches('#').trim().to_lowercase();
            let kept = text
                .chars()
                .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

/// `folder/../other` as `other`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        if part == Component::ParentDir {
            normal.pop();
        } else {
            normal.push(part);
        }
    }
    normal
}

#[test]
fn every_relative_link_leads_to_a_file_and_a_heading() {
    let mut problems = Vec::new();
    let mut links = 0;
    for page in files(&root(), "md") {
        let text = fs::read_to_string(&page).expect("a page");
        for target in prose(&text).split("](").skip(1) {
            let target = target.split(')').next().unwrap_or_default();
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            links += 1;
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let leads_to = if file.is_empty() {
                page.clone()
            } else {
                normal(&page.with_file_name(file))
            };
            let shown = page.strip_prefix(root()).unwrap_or(&page).display();
            if !leads_to.exists() {
                problems.push(format!("{shown}: `{target}` does not exist"));
            } else if !anchor.is_empty() {
                let other = fs::read_to_string(&leads_to).unwrap_or_default();
                if !anchors(&other).contains(anchor) {
                    problems.push(format!("{shown}: `{target}`: there is no such heading"));
                }
            }
        }
    }
    assert!(links > 50, "only {links} links were found");
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}
