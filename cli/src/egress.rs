//! `merlon egress`: destinations outside the mesh that its workloads call.

use clap::Args;
use jiff::Timestamp;
use merlon_config::clock;
use serde::{Deserialize, Serialize};

use crate::{
    control_plane::ControlPlane,
    failure::Failure,
    output::{Output, print_json, print_line, printable, span},
    proxy::aligned,
};

/// List the destinations outside the mesh that workloads called since their sidecars started: what `outbound: deny`
/// would refuse.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  merlon egress --kubernetes
  merlon egress --output json | jq -r '.[].destination' | sort -u

Intercepted connections are listed by address, requests that name the sidecar as proxy by host.
Exit codes: 0 success, 1 the control plane cannot be reached.")]
pub(crate) struct EgressArgs {
    /// Output format.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// One destination of one workload.
#[derive(Debug, Clone, Serialize)]
struct WorkloadCalls {
    identity: String,
    workload: Option<String>,
    #[serde(flatten)]
    calls: Calls,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Calls {
    destination: String,
    passed: u64,
    refused: u64,
    last: Timestamp,
}

pub(crate) async fn run(args: &EgressArgs, control_plane: &ControlPlane) -> Result<(), Failure> {
    let mut proxies = control_plane.proxies().await?;
    proxies.retain(|proxy| proxy.state != "disconnected");
    proxies.sort_by(|a, b| (&a.identity, &a.id).cmp(&(&b.identity, &b.id)));
    let mut all = Vec::new();
    let mut others = 0;
    for proxy in proxies {
        let mut config = control_plane.proxy_config(&proxy.id).await?;
        let Some(outside) = config.get_mut("outside").map(serde_json::Value::take) else {
            continue;
        };
        others += outside
            .get("otherCalls")
            .and_then(serde_json::Value::as_u64)
            .unwrap_or_default();
        let calls = outside.get("destinations").cloned().unwrap_or_default();
        let calls: Vec<Calls> = serde_json::from_value(calls).map_err(|error| {
            Failure::runtime(format!(
                "cannot parse the egress report of proxy `{}`: {error}",
                printable(&proxy.id)
            ))
        })?;
        all.extend(calls.into_iter().map(|calls| WorkloadCalls {
            identity: proxy.identity.clone(),
            workload: proxy.workload.clone(),
            calls,
        }));
    }
    match args.output {
        Output::Json => print_json(&all),
        Output::Text if all.is_empty() => print_line("no destination outside the mesh was called"),
        Output::Text => {
            print_line(&table(&all, clock::now()));
            if others > 0 {
                print_line(&format!(
                    "and {others} calls to destinations that are no longer tracked"
                ));
            }
        }
    }
    Ok(())
}

fn table(all: &[WorkloadCalls], now: Timestamp) -> String {
    let header = ["IDENTITY", "DESTINATION", "PASSED", "REFUSED", "LAST"].map(str::to_owned);
    let rows = all.iter().map(|called| {
        let ago = now.duration_since(called.calls.last).as_secs();
        [
            printable(&called.identity),
            printable(&called.calls.destination),
            called.calls.passed.to_string(),
            called.calls.refused.to_string(),
            format!("{} ago", span(u64::try_from(ago).unwrap_or_default())),
        ]
    });
    aligned(&std::iter::once(header).chain(rows).collect::<Vec<_>>())
}
