//! The Markdown pages match the tree: links have a target, and `docs/capabilities.md` names tests that exist.
//! These tests need no servers.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Component, Path, PathBuf},
    sync::{Arc, Mutex},
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

/// [`find_tests_of`], which reads many files, once for each owner.
fn tests_of(owner: &str) -> Arc<BTreeSet<String>> {
    static FOUND: Mutex<BTreeMap<String, Arc<BTreeSet<String>>>> = Mutex::new(BTreeMap::new());
    let mut found = FOUND.lock().expect("no panic while it is locked");
    let tests = found
        .entry(owner.to_owned())
        .or_insert_with(|| Arc::new(find_tests_of(owner)));
    Arc::clone(tests)
}

/// The tests of a suite (a module of a target below `tests/suites`) or of a crate, named as in Rust. Empty if neither exists.
fn find_tests_of(owner: &str) -> BTreeSet<String> {
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
        for name in missing_tests(tests) {
            problems.push(format!("{capability}: there is no test `{name}`"));
        }
    }
    assert!(rows >= LEAST_ROWS, "only {rows} rows were found");
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// The tests that backticks name, such as `traffic::one_connection_carries_many_requests`, and do not exist.
fn missing_tests(text: &str) -> Vec<&str> {
    let named = text.split('`').filter(|name| name.contains("::"));
    named
        .filter(|name| {
            let (owner, test) = name.rsplit_once("::").expect("it contains one");
            !tests_of(owner).contains(test)
        })
        .collect()
}

/// The identifiers of the footnotes that a text refers to: `text[^one][^two]`.
fn references(text: &str) -> Vec<&str> {
    let found = text.split("[^").skip(1);
    found.filter_map(|rest| rest.split(']').next()).collect()
}

/// The lines of a page below a heading, up to the next heading.
fn section<'a>(page: &'a str, heading: &str) -> Vec<&'a str> {
    let mut lines = page.lines().skip_while(|line| *line != heading);
    assert!(lines.next().is_some(), "there is no heading `{heading}`");
    lines.take_while(|line| !line.starts_with('#')).collect()
}

/// The cells of the table below a heading, without its header.
fn rows<'a>(page: &'a str, heading: &str) -> Vec<Vec<&'a str>> {
    let lines = section(page, heading);
    let table = lines.into_iter().filter(|line| line.starts_with('|'));
    table
        .skip(2)
        .map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
        .collect()
}

/// The sentences of a text. A footnote belongs to the sentence that it follows.
fn sentences(text: &str) -> Vec<String> {
    let mut found = vec![String::new()];
    for word in text.split_whitespace() {
        let last = found.last_mut().expect("at least one");
        last.push_str(word);
        last.push(' ');
        let bare = word.split("[^").next().unwrap_or_default();
        if bare.trim_end_matches("**").ends_with('.') {
            found.push(String::new());
        }
    }
    found.retain(|sentence| !sentence.trim().is_empty());
    found
}

/// The promises of the project: each has a footnote that names the tests that show it.
#[test]
fn every_promise_names_tests_that_exist() {
    let mut problems = Vec::new();
    for (name, promises) in [
        ("SECURITY.md", security_promises as fn(&str) -> Vec<String>),
        ("proxy/README.md", proxy_promises),
    ] {
        let page = fs::read_to_string(root().join(name)).expect("the page");
        let promises = promises(&page);
        assert!(
            promises.len() > 30,
            "only {} promises were found in {name}",
            promises.len()
        );
        let notes: BTreeMap<&str, &str> = page
            .lines()
            .filter_map(|line| line.strip_prefix("[^")?.split_once("]: "))
            .collect();
        for promise in &promises {
            let used = references(promise);
            if used.is_empty() {
                problems.push(format!("{name}: no footnote names a test of: {promise}"));
            }
            for id in used {
                if !notes.contains_key(id) {
                    problems.push(format!("{name}: there is no footnote `[^{id}]`"));
                }
            }
        }
        for (id, note) in notes {
            if !promises
                .iter()
                .any(|promise| references(promise).contains(&id))
            {
                problems.push(format!(
                    "{name}: no promise refers to the footnote `[^{id}]`"
                ));
            }
            if !note.contains("::") && !note.starts_with("Not tested: ") {
                problems.push(format!("{name}: the footnote `[^{id}]` names no test"));
            }
            for test in missing_tests(note) {
                problems.push(format!("{name}: [^{id}]: there is no test `{test}`"));
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// Each sentence about a defence, and of the paragraphs on what fails closed and on measures in the code; and each item of
/// what is not defended.
fn security_promises(page: &str) -> Vec<String> {
    let heading = "## What is defended";
    let defences = rows(page, heading);
    let mut found: Vec<String> = defences
        .iter()
        .flat_map(|cells| sentences(cells.last().expect("a cell")))
        .collect();
    let closed = section(page, heading).into_iter();
    let closed = closed.filter_map(|line| line.strip_prefix("**Fail closed.** "));
    let measures = section(page, "## Measures in the code").join(" ");
    found.extend(closed.flat_map(sentences));
    found.extend(sentences(&measures));
    // What is not defended is stated in items, some of which promise something as well.
    let items = section(page, "## What is not defended").into_iter();
    let items: Vec<_> = items.filter_map(|line| line.strip_prefix("- ")).collect();
    assert!(items.len() >= 8, "only {} items were found", items.len());
    found.extend(items.into_iter().map(str::to_owned));
    found
}

/// Each row of the tables that describe behaviour, and the text above each table of names, which a test compares with the
/// code as a whole.
fn proxy_promises(page: &str) -> Vec<String> {
    let names = [
        "### The access log",
        "## Flags",
        "## Log events",
        "## Metrics",
    ];
    let text = |heading: &&str| {
        let lines = section(page, heading).into_iter();
        let text: Vec<_> = lines.take_while(|line| !line.starts_with('|')).collect();
        text.join(" ")
    };
    let behaviour = [
        "## The life of a request",
        "### Interception",
        "### What fails closed",
        "### Headers",
        "### Limits",
        "## Behaviour without a dependency",
    ]
    .iter()
    .flat_map(|heading| rows(page, heading))
    .map(|cells| cells.join(" | "));
    names.iter().map(text).chain(behaviour).collect()
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
