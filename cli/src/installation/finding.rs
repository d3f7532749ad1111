//! The result of a check, and its text.

use serde::Serialize;

use crate::cluster::error_text;

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Finding {
    pub(super) level: Level,
    what: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Level {
    Ok,
    Warning,
    Problem,
}

impl Finding {
    pub(super) fn ok(what: impl Into<String>) -> Self {
        Self {
            level: Level::Ok,
            what: what.into(),
            hint: None,
        }
    }

    pub(super) fn warning(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            level: Level::Warning,
            what: what.into(),
            hint: Some(hint.into()),
        }
    }

    pub(super) fn problem(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            level: Level::Problem,
            what: what.into(),
            hint: Some(hint.into()),
        }
    }
}

/// A finding for something that could not be read, for example because a permission is missing.
pub(super) fn unreadable(what: &str, error: &kube::Error) -> Finding {
    let hint = match error {
        kube::Error::Api(status) if status.code == 403 => {
            "ask for permission to list them, or let a user with this permission run the check"
        }
        _ => "try again",
    };
    // Not a warning: whether it is healthy is unknown.
    Finding::problem(format!("cannot read {what}: {}", error_text(error)), hint)
}

/// The lines that are printed for a finding.
pub(super) fn text(finding: &Finding) -> String {
    let word = match finding.level {
        Level::Ok => "ok      ",
        Level::Warning => "warning ",
        Level::Problem => "problem ",
    };
    let indent = "\n        ";
    let what = finding.what.replace('\n', indent);
    match &finding.hint {
        Some(hint) => format!("{word}{what}{indent}hint: {}", hint.replace('\n', indent)),
        None => format!("{word}{what}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_prints_the_problem_and_the_fix_on_a_line_of_its_own() {
        assert_eq!(text(&Finding::ok("healthy")), "ok      healthy");
        assert_eq!(
            text(&Finding::problem("one\ntwo", "fix it")),
            "problem one\n        two\n        hint: fix it"
        );
    }
}
