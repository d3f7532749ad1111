//! `merlon explain`: why a request was allowed or refused.
//!
//! The facts were recorded by the proxy that decided. They are evaluated here anew, by Cedar's own evaluator: another
//! engine than the one that decided. What was refused before or after the policies, by another check, is told by what
//! that check said: neither tokens nor bodies are kept to repeat it.

mod text;

use clap::Args;
use merlon_config::snapshot::MeshState;
use merlon_policy::explain::{Explanation, explain};
use serde_json::{Value, json};

use crate::{
    control_plane::{ControlPlane, RecordedDecision},
    failure::Failure,
    output::{Output, print_json, print_line, printable},
};

/// Says why a request was allowed or refused, by its decision id.
#[derive(Debug, Args)]
#[command(after_help = "\
A refused caller finds the id in the answer, as `merlon-decision-id` and as `decision_id` in its body; an operator finds
it in the access log. Of its last 4,096 requests a proxy remembers every refusal, and 50 permits a second.

Examples:
  merlon explain 1a2b3c4d-0g5
  merlon explain 1a2b3c4d-0g5 --output json | jq .then.determining

Exit codes: 0 explained, 1 nobody remembers it, or the control plane cannot be asked.")]
pub(crate) struct ExplainArgs {
    /// The decision's id.
    decision: String,
    /// How the result is written.
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

/// A decision, explained.
#[derive(Debug)]
pub(crate) struct Explained {
    id: String,
    record: RecordedDecision,
    verdict: Verdict,
    /// What the policies say; absent where nobody knew which service was meant.
    policies: Option<Judgement>,
}

/// Who decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// The policies permitted it, and nothing else minded.
    Allowed,
    /// The policies denied it.
    Denied,
    /// A check refused it before the policies were asked.
    RefusedBefore,
    /// The policies permitted it, and a later check refused it.
    RefusedAfter,
    /// Nothing refused it; what it was meant for failed.
    Failed,
}

impl Verdict {
    fn of(record: &RecordedDecision) -> Self {
        let decided = record
            .facts
            .as_ref()
            .and_then(|facts| facts.decided.as_ref());
        match (&record.decision.outcome.reason, decided) {
            (_, Some(decided)) if !decided.allowed => Self::Denied,
            (None, _) => Self::Allowed,
            (Some(reason), _) if reason.starts_with("upstream.") => Self::Failed,
            (Some(_), Some(_)) => Self::RefusedAfter,
            (Some(_), None) => Self::RefusedBefore,
        }
    }

    const fn decider(self) -> &'static str {
        match self {
            Self::Allowed | Self::Denied => "policies",
            Self::RefusedBefore | Self::RefusedAfter => "check",
            Self::Failed => "upstream",
        }
    }

    /// Whether the policies had their say.
    const fn is_asked(self) -> bool {
        !matches!(self, Self::RefusedBefore)
    }
}

/// What the policies of then and of today say to the recorded facts.
#[derive(Debug)]
struct Judgement {
    then: Explanation,
    today: Today,
}

/// What the same request would be answered now.
#[derive(Debug)]
enum Today {
    /// The policies are what they were.
    Same,
    Other(Explanation),
    /// The service is not in the mesh any more.
    Gone,
    Unknown(String),
}

/// Fetches the facts of a decision and evaluates them.
pub(crate) async fn look_up(control_plane: &ControlPlane, id: &str) -> Result<Explained, Failure> {
    let record = control_plane.decision(id).await?;
    let policies = judge(id, &record)?;
    Ok(Explained {
        id: id.to_owned(),
        verdict: Verdict::of(&record),
        policies,
        record,
    })
}

fn judge(id: &str, record: &RecordedDecision) -> Result<Option<Judgement>, Failure> {
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
            "the policies that decided `{id}` do not compile here: {first}"
        ))
        .hint("`merlon` may be older than the proxy; `merlon version` shows this one's")
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
    Ok(Some(Judgement { then, today }))
}

impl Explained {
    /// What the policies said, as they were; none when they were not asked.
    pub(crate) fn then(&self) -> Option<&Explanation> {
        let policies = self.policies.as_ref().filter(|_| self.verdict.is_asked());
        policies.map(|policies| &policies.then)
    }

    /// One line.
    pub(crate) fn summary(&self) -> String {
        match self.then() {
            Some(then) => printable(&then.summary),
            None => printable(&text::refusal(&self.record.decision.outcome)),
        }
    }

    /// Three or four lines.
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
        let (then, would_have) = match self.verdict.is_asked() {
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
