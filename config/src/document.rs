//! Splits a file into its documents and parses each into a tree.

use serde_saphyr::{Error, MergeKeyPolicy, Options, budget::BudgetBreach};

use crate::{
    node::{Mark, Node, Value},
    report::Report,
    resources::File,
    stack,
};

/// Maximum size of a document, in bytes.
pub(crate) const MAX_BYTES: usize = 1 << 20;

/// Maximum nesting of lists and maps.
const MAX_DEPTH: usize = 64;

/// Bytes of the stack on which a document is read. The library recurses once per level; the deepest document needs less than
/// half of it, in debug builds, too.
const STACK: usize = 32 << 20;

/// Maximum number of values in a document.
const MAX_NODES: usize = 100_000;

/// The trees of all documents of a YAML file. Documents that cannot be parsed are reported and skipped.
pub(crate) fn documents(file: &File, report: &mut Report) -> Vec<Node> {
    split(&file.text)
        .filter_map(|chunk| match parse(chunk.text) {
            Ok(Node {
                value: Value::Null, ..
            }) => None,
            Ok(mut node) => {
                shift(&mut node, chunk.lines_before);
                Some(node)
            }
            Err(Unreadable {
                mut at,
                message,
                hint,
            }) => {
                at.line = at.line.saturating_add(chunk.lines_before);
                at.width = 1;
                let problem = file.problem(at, message).maybe_hint(hint);
                report.push(problem);
                None
            }
        })
        .collect()
}

struct Chunk<'a> {
    lines_before: u32,
    text: &'a str,
}

/// Splits at lines that begin with `---`. YAML 1.2 §9.1.2 forbids such lines within scalars, so no parser is needed, and a
/// document that cannot be parsed does not hide the documents after it.
fn split(text: &str) -> impl Iterator<Item = Chunk<'_>> {
    let mut rest = Some(text);
    let mut lines_before = 0_u32;
    std::iter::from_fn(move || {
        let text = rest.take()?;
        let mut end = 0;
        let mut lines = 0_u32;
        for line in text.split_inclusive('\n') {
            if end > 0 && is_marker(line) {
                break;
            }
            end += line.len();
            lines = lines.saturating_add(1);
        }
        let (chunk, after) = text.split_at_checked(end)?;
        rest = (!after.is_empty()).then_some(after);
        let chunk = Chunk {
            lines_before,
            text: chunk,
        };
        lines_before = lines_before.saturating_add(lines);
        Some(chunk)
    })
}

fn is_marker(line: &str) -> bool {
    line.strip_prefix("---")
        .is_some_and(|after| after.is_empty() || after.starts_with([' ', '\t', '\r', '\n']))
}

struct Unreadable {
    at: Mark,
    message: String,
    hint: Option<&'static str>,
}

fn parse(text: &str) -> Result<Node, Unreadable> {
    if text.len() > MAX_BYTES {
        return Err(Unreadable {
            at: Mark {
                line: 1,
                column: 1,
                width: 1,
            },
            message: format!(
                "this document has {} bytes; the maximum is {MAX_BYTES} (1MiB)",
                text.len()
            ),
            hint: Some("split it into several documents"),
        });
    }
    let parsed = stack::with(STACK, || {
        serde_saphyr::from_str_with_options(text, options())
    });
    parsed.map_err(|error| {
        let at = error.location().map_or(
            Mark {
                line: 1,
                column: 1,
                width: 1,
            },
            Mark::from,
        );
        let (message, hint) = explain(&error);
        Unreadable { at, message, hint }
    })
}

fn options() -> Options {
    serde_saphyr::options! {
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        reject_unsupported_tags: true,
        merge_keys: MergeKeyPolicy::Error,
        with_snippet: false,
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            max_nodes: MAX_NODES,
            max_aliases: 0,
            max_anchors: 0,
        },
    }
}

/// The library's message, or a clearer one where the library refers to its own settings.
fn explain(error: &Error) -> (String, Option<&'static str>) {
    match error {
        Error::DuplicateMappingKey { key, .. } => (
            match key {
                Some(key) => format!("duplicate key `{key}`"),
                None => "duplicate key".to_owned(),
            },
            Some("remove one of them"),
        ),
        Error::MergeKeyNotAllowed { .. } => (
            "merge keys (`<<`) are not supported".to_owned(),
            Some("write the fields out"),
        ),
        Error::Budget { breach, .. } => match breach {
            BudgetBreach::Aliases { .. } | BudgetBreach::Anchors { .. } => (
                "anchors and aliases (`&name`, `*name`) are not supported".to_owned(),
                Some("write the value out, or put it in quotes if it begins with `&` or `*`"),
            ),
            BudgetBreach::Depth { .. } => (
                format!("lists and maps are nested more than {MAX_DEPTH} deep"),
                None,
            ),
            BudgetBreach::Nodes { .. } => (
                format!("this document has more than {MAX_NODES} values"),
                Some("split it into several documents"),
            ),
            _ => ("this document is too large".to_owned(), None),
        },
        Error::MultipleDocuments { .. } => (
            "a second document begins here without `---`".to_owned(),
            Some("insert a line `---` before it"),
        ),
        Error::Message { .. } | Error::ExternalMessage { .. } => (
            without_place(&error.without_snippet().to_string()),
            Some("check indentation, quotes and brackets here and on the line before"),
        ),
        other => (without_place(&other.without_snippet().to_string()), None),
    }
}

/// Removes the position from the library's message: reports print it themselves, counted from the file's first line.
fn without_place(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default();
    let end = line.rfind(" at line ").unwrap_or(line.len());
    line.get(..end).unwrap_or(line).to_owned()
}

fn shift(node: &mut Node, lines: u32) {
    let down = |at: &mut Mark| at.line = at.line.saturating_add(lines);
    down(&mut node.at);
    match &mut node.value {
        Value::List(items) => items.iter_mut().for_each(|item| shift(item, lines)),
        Value::Map(entries) => {
            for (key, value) in entries {
                down(&mut key.at);
                shift(value, lines);
            }
        }
        _ => {}
    }
}
