//! The problems of resources, as their statuses report them.

use merlon_config::{
    Resources,
    report::{Problem, Report, Severity},
    resource::Resource,
};

use super::super::document::Key;

pub(super) fn errors(report: &Report) -> impl Iterator<Item = &Problem> {
    let problems = report.problems().iter();
    problems.filter(|problem| problem.severity == Severity::Error)
}

/// Maximum number of problems that are reported for one resource.
pub(super) const MAX_PROBLEMS: usize = 8;

/// The problems of one resource.
pub(super) fn problems_of(
    key: &Key,
    report: &Report,
    resources: Option<&Resources>,
) -> Option<String> {
    let file = key.to_string();
    let own = errors(report).filter(|problem| problem.file == file);
    let lines: Vec<String> = own
        .take(MAX_PROBLEMS)
        .map(|problem| describe(problem, start_of_policies(key, resources)))
        .collect();
    (!lines.is_empty()).then(|| lines.join("\n"))
}

pub(super) fn problems_of_others(report: &Report) -> String {
    let lines: Vec<String> = errors(report)
        .take(MAX_PROBLEMS)
        .map(|problem| {
            format!(
                "with this resource, {} would be invalid: {}",
                problem.file, problem.message
            )
        })
        .collect();
    lines.join("\n")
}

/// The resource of a key, if it could be read.
pub(super) fn find<'a>(key: &Key, resources: &'a Resources) -> Option<&'a Resource> {
    let (namespace, name) = (key.namespace.parse().ok()?, key.name.parse().ok()?);
    resources.find(key.kind, &namespace, &name)
}

/// Where the text of a policy starts in its document.
fn start_of_policies(key: &Key, resources: Option<&Resources>) -> Option<(u32, u32)> {
    let resources = resources?;
    let resource = find(key, resources)?;
    let begin = resources.locate_in_text(resource, "spec.policies", 1, 1)?;
    Some((begin.line, begin.column))
}

/// Field, position within the field's text, problem and hint.
pub(super) fn describe(problem: &Problem, begin: Option<(u32, u32)>) -> String {
    // The cluster does not keep the lines of a user's file, only those within a text field.
    let place = begin
        .filter(|_| problem.field == "spec.policies")
        .and_then(|(line, column)| {
            let line = problem.line.checked_sub(line)?.checked_add(1)?;
            Some((line, problem.column.checked_sub(column)?.checked_add(1)?))
        });
    let place = place.map(|(line, column)| format!(" line {line}, column {column}"));
    let hint = problem.hint.as_ref().map(|hint| format!(" (hint: {hint})"));
    format!(
        "{}{}: {}{}",
        if problem.field.is_empty() {
            "spec"
        } else {
            &problem.field
        },
        place.unwrap_or_default(),
        problem.message,
        hint.unwrap_or_default()
    )
}
