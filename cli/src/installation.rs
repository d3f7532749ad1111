//! `merlon check`: is the installation in a Kubernetes cluster well, and if not, how is it mended?

mod gateways;
mod namespaces;
mod parts;
mod replicas;
mod resources;

use clap::Args;
use serde::Serialize;

use crate::{
    cluster::{Cluster, Place, said},
    failure::Failure,
    output::{Output, print_json, print_line},
};

/// Looks at Merlon in a Kubernetes cluster: its definitions, control plane, certificates, webhooks, resources, gateways and
/// namespaces. It changes nothing.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  merlon check
  merlon check --context production --output json | jq '.findings[] | select(.level == \"problem\")'

It asks with your own rights, and says what it was not allowed to look at.
Exit codes: 0 all is well (warnings are told), 1 something is not, or the cluster cannot be asked.")]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    place: Place,
    /// Only asks one control plane whether it is ready, at its administration address, as `helm test` does.
    #[arg(long, value_name = "URL")]
    control_plane: Option<url::Url>,
    /// How the result is written.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// One thing that was looked at.
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

/// What was not looked at, because the user may not.
fn unseen(what: &str, error: &kube::Error) -> Finding {
    let hint = match error {
        kube::Error::Api(status) if status.code == 403 => {
            "ask for the right to list them, or have somebody run this who has it"
        }
        _ => "try again",
    };
    // Not a warning: nobody knows whether it is well.
    Finding::problem(
        format!("{what} could not be looked at: {}", said(error)),
        hint,
    )
}

pub(crate) async fn run(args: &CheckArgs) -> Result<(), Failure> {
    let findings = match &args.control_plane {
        Some(url) => vec![replicas::ready_at(url).await],
        None => {
            let cluster = Cluster::connect(&args.place).await?;
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
    fn a_finding_says_what_is_wrong_and_on_a_line_of_its_own_how_to_mend_it() {
        assert_eq!(text(&Finding::ok("all is well")), "ok      all is well");
        assert_eq!(
            text(&Finding::problem("one\ntwo", "mend it")),
            "problem one\n        two\n        hint: mend it"
        );
    }
}
