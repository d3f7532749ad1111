//! `merlon check`: whether the installation in a Kubernetes cluster is healthy, and how to fix what is not.

mod finding;
mod gateways;
mod namespaces;
mod parts;
mod replicas;
mod resources;

use clap::Args;

use crate::{
    cluster::{Cluster, ClusterArgs},
    failure::Failure,
    output::{Output, print_json, print_line},
};
use finding::Level;

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
                print_line(&finding::text(finding));
            }
        }
    }
    match problems {
        0 => Ok(()),
        1 => Err(Failure::runtime("1 problem")),
        many => Err(Failure::runtime(format!("{many} problems"))),
    }
}
