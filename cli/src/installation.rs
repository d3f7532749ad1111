//! `merlon check`: whether the installation in a Kubernetes cluster is healthy, and how to fix what is not.

mod gateways;
mod namespaces;
mod parts;
mod replicas;
mod resources;

use clap::Args;
use serde::Serialize;

use crate::{
    cluster::{Cluster, ClusterArgs, error_text},
    failure::Failure,
    output::{Output, print_json, print_line},
};

/// Check Merlon in a Kubernetes cluster: custom resource definitions, control plane, certificates, webhooks, resources,
/// gateways and namespaces. Read-only.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  merlon check
  merlon check --context production --output json | jq '.findings[] | select(.level == \"problem\")'

It uses your own permissions, and reports what it cannot read.
Exit codes: 0 healthy (warnings are printed), 1 a problem was found, or the cluster cannot be reached.")]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Only check that the control plane with this administration address is ready, as `helm test` does.
    #[arg(long, value_name = "URL")]
    control_plane: Option<url::Url>,
    /// Output format.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Finding {
    level: Level,
    what: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Level {
    Ok,
    Warning,
    Problem,
}

impl Finding {
    pub(crate) fn ok(what: impl Into<String>) -> Self {
        Self {
            level: Level::Ok,
            what: what.into(),
            hint: None,
        }
    }

    pub(crate) fn warning(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            level: Level::Warning,
            what: what.into(),
            hint: Some(hint.into()),
        }
    }

    pub(crate) fn problem(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            level: Level::Problem,
            what: what.into(),
            hint: Some(hint.into()),
        }
    }
}

/// A problem for what could not be read, such as for missing permissions.
fn unreadable(what: &str, error: &kube::Error) -> Finding {
    let hint = match error {
        kube::Error::Api(status) if status.code == 403 => {
            "ask for permission to list them, or let a user with this permission run the check"
        }
        _ => "try again",
    };
    // Not a warning: whether it is healthy is unknown.
    Finding::problem(format!("cannot read {what}: {}", error_text(error)), hint)
}

pub(crate) async fn run(args: &CheckArgs) -> Result<(), Failure> {
    let findings = match &args.control_plane {
        Some(url) => vec![replicas::ready_at(url).await],
        None => {
            let cluster = Cluster::connect(&args.cluster).await?;
            parts::all(&cluster).await?
        }
    };
    let problems = findings
        .iter()
        .filter(|finding| finding.level == Level::Problem)
        .count();
    match args.output {
        Output::Json => print_json(&serde_json::json!({
            "ok": problems == 0, "findings": findings,
        })),
        Output::Text => {
            for finding in &findings {
                print_line(&text(finding));
            }
        }
    }
    match problems {
        0 => Ok(()),
        1 => Err(Failure::runtime("1 problem")),
        many => Err(Failure::runtime(format!("{many} problems"))),
    }
}

fn text(finding: &Finding) -> String {
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
