//! `merlon explain`: why a request was allowed or refused.
//!
//! The proxy that decided recorded the facts. This command evaluates them again with Cedar's own evaluator, which is not
//! the engine that decided. For a request that another check refused, before or after the policies, it prints what that
//! check reported: tokens and bodies are not stored, so the check cannot be repeated.

mod explained;
mod text;

use clap::Args;
use merlon_config::snapshot::MeshState;
use merlon_policy::explain::explain;
use serde_json::{Value, json};

use crate::{
    control_plane::{ControlPlane, RecordedDecision},
    failure::Failure,
    output::{Output, print_json, print_line, printable},
};
use explained::{Explained, PolicyResults, Today, Verdict};

/// Explain why a request was allowed or refused, by its decision id.
#[derive(Debug, Args)]
#[command(after_help = "\
The id is in the response to the caller (header `merlon-decision-id`, field `decision_id` of the body) and in the access
log. Of its last 4,096 requests a proxy stores every refusal, and 50 permits per second.

Examples:
  merlon explain 1a2b3c4d-0g5
  merlon explain 1a2b3c4d-0g5 --output json | jq .then.determining

Exit codes: 0 success, 1 no proxy stores the decision, or the control plane cannot be reached.")]
pub(crate) struct ExplainArgs {
    /// The decision id.
    decision: String,
    /// Output format.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

pub(crate) async fn run(args: &ExplainArgs, control_plane: &ControlPlane) -> Result<(), Failure> {
    let explained = look_up(control_plane, &args.decision).await?;
    match args.output {
        Output::Json => print_json(&explained.json()),
        Output::Text => text::lines(&explained)
            .iter()
            .for_each(|line| print_line(line)),
    }
    Ok(())
}

/// Fetches the facts of a decision and evaluates them.
pub(crate) async fn look_up(control_plane: &ControlPlane, id: &str) -> Result<Explained, Failure> {
    let record = control_plane.decision(id).await?;
    let policies = evaluate(id, &record)?;
    Ok(Explained {
        id: id.to_owned(),
        verdict: Verdict::of(&record),
        policies,
        record,
    })
}

fn evaluate(id: &str, record: &RecordedDecision) -> Result<Option<PolicyResults>, Failure> {
    let (Some(facts), Some(service), Some(mesh)) = (&record.facts, &record.service, &record.mesh)
    else {
        return Ok(None);
    };
    let then = explain(service, mesh, facts).map_err(|problems| {
        let first = problems
            .first()
            .map(ToString::to_string)
            .unwrap_or_default();
        Failure::runtime(format!(
            "the policies of decision `{id}` do not compile with this version: {first}"
        ))
        .hint("`merlon` may be older than the proxy; `merlon version` prints its version")
    })?;
    let mesh_now: &MeshState = record.mesh_now.as_ref().unwrap_or(mesh);
    let today = match &record.service_now {
        None => Today::Gone,
        Some(now) if now == service && mesh_now == mesh => Today::Same,
        Some(now) => match explain(now, mesh_now, facts) {
            Ok(explanation) => Today::Other(explanation),
            Err(problems) => Today::Unknown(
                problems
                    .first()
                    .map(ToString::to_string)
                    .unwrap_or_default(),
            ),
        },
    };
    Ok(Some(PolicyResults { then, today }))
}

impl Explained {
    /// A summary of one line.
    pub(crate) fn summary(&self) -> String {
        match self.then() {
            Some(then) => printable(&then.summary),
            None => printable(&text::refusal(&self.record.decision.outcome)),
        }
    }

    /// A summary of three or four lines.
    pub(crate) fn short(&self) -> Vec<String> {
        text::short(self)
    }

    fn json(&self) -> Value {
        let outcome = &self.record.decision.outcome;
        let policies = self.policies.as_ref();
        let (changed, today) = match policies.map(|policies| (&policies.today, &policies.then)) {
            None => (false, Value::Null),
            Some((Today::Same, then)) => (false, json!(then)),
            Some((Today::Other(now), _)) => (true, json!(now)),
            Some((Today::Gone | Today::Unknown(_), _)) => (true, Value::Null),
        };
        let then = policies.map(|policies| json!(policies.then));
        let (then, would_have) = match self.verdict.reached_policies() {
            true => (then, None),
            false => (None, then),
        };
        json!({
            "decisionId": self.id,
            "allowed": self.verdict == Verdict::Allowed,
            "decidedBy": self.verdict.decider(),
            "refusal": outcome.reason.as_ref().map(|_| outcome),
            "asked": self.record.decision.asked,
            "proxy": self.record.proxy,
            "snapshotVersion": self.record.snapshot_version,
            "facts": self.record.facts,
            "then": then,
            "policiesWouldHaveSaid": would_have,
            "policiesChanged": changed,
            "today": today,
        })
    }
}
