//! The section "Log events" of a crate's README and the sources name the same events, levels and fields.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs, io,
    path::Path,
};

use crate::sources::rust_files;

/// The macros, the levels they log at, and whether the README must list their events.
const LEVELS: [(&str, &str, bool); 5] = [
    ("error", "ERROR", true),
    ("warn", "WARN", true),
    ("info", "INFO", true),
    ("debug", "DEBUG", false),
    ("trace", "TRACE", false),
];

/// Keys that every line of the process log has, and `message`, the name of the event in `tracing`.
const RESERVED: [&str; 5] = ["message", "event", "ts", "level", "target"];

/// Unit tests at the end of a file; their events are not those of the program.
const UNIT_TESTS: &str = "\n#[cfg(test)]\nmod tests {\n";

/// Levels and fields of each event.
type Events = BTreeMap<String, (BTreeSet<String>, BTreeSet<String>)>;

/// What [`check`] found. [`fmt::Display`] prints one violation per line.
#[derive(Debug, Default)]
pub struct Report {
    /// How many events of the levels INFO, WARN and ERROR the sources contain.
    pub events: usize,
    /// Where README and sources differ.
    pub violations: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} events", self.events)?;
        self.violations
            .iter()
            .try_for_each(|violation| writeln!(f, "{violation}"))
    }
}

/// Checks the crate in `crate_dir`, the directory of its `Cargo.toml`.
///
/// Every event has a dotted name as its only text, and no field with a reserved key (`message`, `event`, `ts`, `level`,
/// `target`). The README lists each event of the levels INFO, WARN and ERROR with all its levels and fields; rows of
/// DEBUG and TRACE events are optional.
///
/// # Errors
/// A file that cannot be read.
pub fn check(crate_dir: &Path) -> io::Result<Report> {
    let src = crate_dir.join("src");
    let mut sources = Sources::default();
    for file in rust_files(&src)? {
        let place = file.strip_prefix(&src).unwrap_or(&file);
        if !place.starts_with("tests") {
            sources.read(&fs::read_to_string(&file)?, &place.display().to_string());
        }
    }
    let readme = fs::read_to_string(crate_dir.join("README.md"))?;
    Ok(sources.compare(&listed(&readme)))
}

/// The events in source text.
#[derive(Debug, Default)]
struct Sources {
    /// At INFO, WARN and ERROR.
    listed: Events,
    /// At DEBUG and TRACE.
    unlisted: Events,
    violations: Vec<String>,
}

impl Sources {
    fn read(&mut self, text: &str, place: &str) {
        let text = text.split(UNIT_TESTS).next().unwrap_or_default();
        for (name, level, must_be_listed) in LEVELS {
            for (at, start) in text.match_indices(&format!("tracing::{name}!(")) {
                let (_, call) = text.split_at(at + start.len());
                let mut arguments = arguments(call);
                let event = arguments.pop().unwrap_or_default();
                let event = event.trim_matches('"').to_owned();
                if !is_dotted(&event) {
                    let violation = format!("{place}: `{event}` is not a dotted event name");
                    self.violations.push(violation);
                    continue;
                }
                let events = if must_be_listed {
                    &mut self.listed
                } else {
                    &mut self.unlisted
                };
                let (levels, fields) = events.entry(event.clone()).or_default();
                levels.insert(level.to_owned());
                for argument in &arguments {
                    let field = argument.split('=').next().unwrap_or_default();
                    let field = field.trim().trim_start_matches(['%', '?']);
                    if RESERVED.contains(&field) {
                        let violation =
                            format!("{place}: `{event}` has the reserved field `{field}`");
                        self.violations.push(violation);
                    }
                    fields.insert(field.to_owned());
                }
            }
        }
    }

    fn compare(mut self, readme: &Events) -> Report {
        let mut violations = std::mem::take(&mut self.violations);
        for (event, (levels, fields)) in &self.listed {
            let Some((listed_levels, listed_fields)) = readme.get(event) else {
                violations.push(format!("README.md does not list `{event}`"));
                continue;
            };
            if levels != listed_levels {
                violations.push(format!("README.md: the levels of `{event}` are {levels:?}"));
            }
            let missing: Vec<_> = fields.difference(listed_fields).collect();
            if !missing.is_empty() {
                let violation = format!("README.md: `{event}` does not list {missing:?}");
                violations.push(violation);
            }
        }
        for event in readme.keys() {
            if !self.listed.contains_key(event) && !self.unlisted.contains_key(event) {
                violations.push(format!("README.md lists `{event}`, and nothing logs it"));
            }
        }
        Report {
            events: self.listed.len(),
            violations,
        }
    }
}

fn is_dotted(event: &str) -> bool {
    event.split('.').count() > 1
        && event
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b == b'_' || b == b'.')
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
        if let Some(last) = arguments.last_mut() {
            last.push(c);
        }
    }
    let arguments = arguments.iter().map(|argument| argument.trim().to_owned());
    arguments.filter(|argument| !argument.is_empty()).collect()
}

/// The rows of the section "Log events": events, levels, meaning and fields. A row may name several events.
fn listed(readme: &str) -> Events {
    let section = readme.split("\n## Log events\n").nth(1).unwrap_or_default();
    let section = section.split("\n## ").next().unwrap_or_default();
    let mut events = Events::new();
    for row in section.lines().filter(|line| line.starts_with("| `")) {
        let mut cells = row.trim_matches('|').split('|');
        let mut cell = || cells.next().unwrap_or_default();
        let (names, levels, fields) = (quoted(cell()), cell(), quoted(cell()));
        let levels = levels.split(',').map(|level| level.trim().to_owned());
        let levels: BTreeSet<String> = levels.collect();
        events.extend(
            names
                .into_iter()
                .map(|name| (name, (levels.clone(), fields.clone()))),
        );
    }
    events
}

fn quoted(cell: &str) -> BTreeSet<String> {
    let parts = cell.split('`').skip(1).step_by(2);
    parts.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const README: &str = "\n## Log events\n
| event | level | meaning and fields |
|---|---|---|
| `some.event` | WARN, ERROR | `error`, `kind`, `name` |

## Next
";

    #[test]
    fn an_event_is_a_dotted_name_after_its_fields() {
        let mut sources = Sources::default();
        let text = r#"
            tracing::warn!(%error, name = f("a, b"), kind = kind.kind, "some.event");
            tracing::error!("some.event");
            tracing::debug!("not.listed");
        "#;
        sources.read(text, "a.rs");
        let (levels, fields) = &sources.listed["some.event"];
        assert_eq!(levels.iter().collect::<Vec<_>>(), ["ERROR", "WARN"]);
        assert_eq!(fields.iter().collect::<Vec<_>>(), ["error", "kind", "name"]);
        assert_eq!(sources.listed.len(), 1);
        let report = sources.compare(&listed(README));
        assert_eq!((report.events, report.violations.len()), (1, 0), "{report}");
    }

    #[test]
    fn a_sentence_is_not_an_event() {
        let mut sources = Sources::default();
        for text in [
            "tracing::info!(count, \"some.event: with a sentence\");",
            "tracing::debug!(\"a sentence\");",
        ] {
            sources.read(text, "a.rs");
        }
        assert_eq!(sources.violations.len(), 2);
        for violation in sources.violations {
            let expected = "is not a dotted event name";
            assert!(violation.contains(expected), "{violation}");
        }
    }

    #[test]
    fn a_reserved_field_is_a_violation() {
        let mut sources = Sources::default();
        let text = r#"
            tracing::warn!(message = error.message(), "some.event");
            tracing::debug!(%target, "other.event");
        "#;
        sources.read(text, "a.rs");
        let expected = [
            "a.rs: `some.event` has the reserved field `message`",
            "a.rs: `other.event` has the reserved field `target`",
        ];
        assert_eq!(sources.violations, expected);
    }

    #[test]
    fn a_missing_event_level_or_field_and_a_stale_row_are_violations() {
        let violations = |text: &str| {
            let mut sources = Sources::default();
            sources.read(text, "a.rs");
            sources.compare(&listed(README)).violations
        };
        let [stale] = violations("").try_into().unwrap();
        assert_eq!(stale, "README.md lists `some.event`, and nothing logs it");
        let text = r#"
            tracing::info!("other.event");
            tracing::warn!(count, "some.event");
        "#;
        let [missing, levels, fields] = violations(text).try_into().unwrap();
        assert_eq!(missing, "README.md does not list `other.event`");
        assert!(levels.contains("levels of `some.event`"), "{levels}");
        assert!(fields.contains("count"), "{fields}");
    }

    #[test]
    fn events_of_unit_tests_do_not_count() {
        let mut sources = Sources::default();
        let text = format!("{UNIT_TESTS}    tracing::info!(\"a free text\");\n}}\n");
        sources.read(&text, "a.rs");
        assert!(sources.listed.is_empty() && sources.violations.is_empty());
    }
}
