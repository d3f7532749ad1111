//! The section "Log events" of the README and the sources name the same events, levels and fields.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

const LEVELS: [(&str, &str); 3] = [("info", "INFO"), ("warn", "WARN"), ("error", "ERROR")];

/// Levels and fields of each event.
type Events = BTreeMap<String, (BTreeSet<String>, BTreeSet<String>)>;

#[test]
fn the_readme_lists_every_log_event_with_its_levels_and_fields() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut written = Events::new();
    collect(&root.join("src"), &mut written);
    assert!(written.len() > 40, "{written:?}");
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    let listed = listed(&readme);
    let names = |events: &Events| events.keys().cloned().collect::<BTreeSet<_>>();
    let missing: Vec<_> = names(&written)
        .difference(&names(&listed))
        .cloned()
        .collect();
    let stale: Vec<_> = names(&listed)
        .difference(&names(&written))
        .cloned()
        .collect();
    assert!(
        missing.is_empty() && stale.is_empty(),
        "missing: {missing:?}, stale: {stale:?}"
    );
    for (event, (levels, fields)) in written {
        let (listed_levels, listed_fields) = &listed[&event];
        assert_eq!(&levels, listed_levels, "levels of {event}");
        let missing: Vec<_> = fields.difference(listed_fields).collect();
        assert!(
            missing.is_empty(),
            "{event} does not list the fields {missing:?}"
        );
    }
}

#[test]
fn an_event_is_a_dotted_name_after_its_fields() {
    let mut events = Events::new();
    let text = r#"
        tracing::warn!(%error, name = f("a, b"), kind = kind.kind, "some.event");
        tracing::error!("some.event");
        tracing::debug!("not.listed");
    "#;
    events_of(text, "a.rs", &mut events);
    let (levels, fields) = &events["some.event"];
    assert_eq!(levels.iter().collect::<Vec<_>>(), ["ERROR", "WARN"]);
    assert_eq!(fields.iter().collect::<Vec<_>>(), ["error", "kind", "name"]);
    assert_eq!(events.len(), 1);
}

#[test]
#[should_panic(expected = "is not a dotted event name")]
fn a_sentence_is_not_an_event() {
    let text = "tracing::info!(count, \"some.event: with a sentence\");";
    events_of(text, "a.rs", &mut Events::new());
}

fn collect(directory: &Path, events: &mut Events) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.ends_with("src/tests") {
            continue;
        }
        if path.is_dir() {
            collect(&path, events);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            events_of(&text, &path.display().to_string(), events);
        }
    }
}

fn events_of(text: &str, place: &str, events: &mut Events) {
    for (name, level) in LEVELS {
        for (at, start) in text.match_indices(&format!("tracing::{name}!(")) {
            let (_, call) = text.split_at(at + start.len());
            let mut arguments = arguments(call);
            let event = arguments.pop().unwrap_or_default();
            let event = event.trim_matches('"').to_owned();
            let dotted = event.split('.').count() > 1
                && event
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b == b'_' || b == b'.');
            assert!(dotted, "{place}: `{event}` is not a dotted event name");
            let (levels, fields) = events.entry(event).or_default();
            levels.insert(level.to_owned());
            fields.extend(arguments.iter().map(|argument| {
                let field = argument.split('=').next().unwrap_or_default();
                field.trim().trim_start_matches(['%', '?']).to_owned()
            }));
        }
    }
}

/// The arguments of a macro call, up to its closing parenthesis.
fn arguments(text: &str) -> Vec<String> {
    let (mut arguments, mut depth, mut quoted, mut escaped) =
        (vec![String::new()], 0, false, false);
    for c in text.chars() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ if quoted => {}
            '(' | '[' | '{' => depth += 1,
            ')' if depth == 0 => break,
            ')' | ']' | '}' => depth -= 1,
            ',' if depth == 0 => {
                arguments.push(String::new());
                continue;
            }
            _ => {}
        }
        arguments.last_mut().unwrap().push(c);
    }
    let arguments = arguments.iter().map(|argument| argument.trim().to_owned());
    arguments.filter(|argument| !argument.is_empty()).collect()
}

fn listed(readme: &str) -> Events {
    let section = readme.split("\n## Log events\n").nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split('|').collect();
        let quoted = |cell: &str| -> BTreeSet<String> {
            cell.split('`')
                .skip(1)
                .step_by(2)
                .map(str::to_owned)
                .collect()
        };
        let event = quoted(cells[0]).pop_first().unwrap();
        let levels = cells[1].split(',').map(|level| level.trim().to_owned());
        (event, (levels.collect(), quoted(cells[2])))
    })
    .collect()
}
