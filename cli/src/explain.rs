//! `merlon explain`: why a request was allowed or refused.
//!
//! The facts were recorded by the proxy that decided. They are evaluated here anew, by Cedar's own evaluator: another
//! engine than the one that decided.

use clap::Args;
use merlon_config::snapshot::MeshState;
use merlon_policy::{
    decision::Effect,
    explain::{Explanation, PolicyExplanation, PolicyOutcome, explain},
    record::{RecordedFacts, RecordedRequest},
};
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
it in the access log. A proxy remembers its last 4,096 decisions.

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
        Output::Text => explained.text().iter().for_each(|line| print_line(line)),
    }
    Ok(())
}

/// A decision, explained.
#[derive(Debug)]
pub(crate) struct Explained {
    id: String,
    record: RecordedDecision,
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
    let Some(service) = &record.service else {
        return Err(Failure::runtime(format!(
            "the proxy remembers the facts of `{id}`, but not the policies that decided"
        )));
    };
    let then = explain(service, &record.mesh, &record.facts).map_err(|problems| {
        let first = problems
            .first()
            .map(ToString::to_string)
            .unwrap_or_default();
        Failure::runtime(format!(
            "the policies that decided `{id}` do not compile here: {first}"
        ))
        .hint("`merlon` may be older than the proxy; `merlon version` shows this one's")
    })?;
    let mesh_now: &MeshState = record.mesh_now.as_ref().unwrap_or(&record.mesh);
    let today = match &record.service_now {
        None => Today::Gone,
        Some(now) if now == service && *mesh_now == record.mesh => Today::Same,
        Some(now) => match explain(now, mesh_now, &record.facts) {
            Ok(explanation) => Today::Other(explanation),
            Err(problems) => Today::Unknown(
                problems
                    .first()
                    .map(ToString::to_string)
                    .unwrap_or_default(),
            ),
        },
    };
    Ok(Explained {
        id: id.to_owned(),
        then,
        today,
        record,
    })
}

impl Explained {
    /// What it was, with the policies as they were.
    pub(crate) fn then(&self) -> &Explanation {
        &self.then
    }

    /// One line.
    pub(crate) fn summary(&self) -> String {
        printable(&self.then.summary)
    }

    /// Three or four lines.
    pub(crate) fn short(&self) -> Vec<String> {
        let mut lines = vec![printable(&asked(&self.record.facts))];
        lines.extend(self.then.policies.iter().map(policy_line));
        lines
    }

    /// All of it, for people.
    fn text(&self) -> Vec<String> {
        let facts = &self.record.facts;
        let mut lines = vec![format!(
            "Decision {}: {}",
            self.id,
            if self.then.allowed {
                "allowed"
            } else {
                "denied"
            }
        )];
        let mut line =
            |name: &str, text: String| lines.push(format!("  {name:<10} {}", printable(&text)));
        line("asked", asked(facts));
        line("when", facts.now.to_string());
        line("from", facts.source_ip.to_string());
        if facts.client_ip != facts.source_ip {
            line("client", facts.client_ip.to_string());
        }
        for (name, text) in details(facts) {
            line(name, text);
        }
        if let Some(answered) = answered(&self.record.decision) {
            line("answered", answered);
        }
        line("proxy", self.record.proxy.clone());
        line(
            "snapshot",
            self.record
                .snapshot_version
                .get(..12)
                .unwrap_or(&self.record.snapshot_version)
                .to_owned(),
        );
        lines.push(String::new());
        lines.push("Policies considered".to_owned());
        if self.then.policies.is_empty() {
            lines.push("  none: no policy concerns this service".to_owned());
        }
        lines.extend(
            self.then
                .policies
                .iter()
                .map(|policy| format!("  {}", policy_line(policy))),
        );
        lines.push(String::new());
        lines.push(format!("Decided    {}", printable(&self.then.summary)));
        lines.push(format!("Today      {}", printable(&self.said_today())));
        lines
    }

    fn said_today(&self) -> String {
        match &self.today {
            Today::Same => "the same: the policies have not changed".to_owned(),
            Today::Other(now) if now.allowed == self.then.allowed => {
                format!(
                    "the policies have changed, the answer has not: {}",
                    now.summary
                )
            }
            Today::Other(now) => format!("another answer: {}", now.summary),
            Today::Gone => format!(
                "there is no service `{}` any more",
                self.record.facts.service
            ),
            Today::Unknown(why) => format!("not known: {why}"),
        }
    }

    fn json(&self) -> Value {
        let (changed, today) = match &self.today {
            Today::Same => (false, json!(self.then)),
            Today::Other(now) => (true, json!(now)),
            Today::Gone | Today::Unknown(_) => (true, Value::Null),
        };
        json!({
            "decisionId": self.id,
            "proxy": self.record.proxy,
            "snapshotVersion": self.record.snapshot_version,
            "facts": self.record.facts,
            "decision": self.record.decision,
            "then": self.then,
            "policiesChanged": changed,
            "today": today,
        })
    }
}

/// `spiffe://… asked for POST /charges of payments/payments`.
fn asked(facts: &RecordedFacts) -> String {
    let what = match &facts.request {
        RecordedRequest::Http { method, path, .. } => {
            format!("{method} {path} of {}", facts.service)
        }
        RecordedRequest::Grpc {
            service, method, ..
        } => {
            format!("gRPC {service}/{method} of {}", facts.service)
        }
        RecordedRequest::Tcp { .. } => format!("a TCP connection to {}", facts.service),
    };
    format!("{} asked for {what}, port {}", facts.principal, facts.port)
}

fn details(facts: &RecordedFacts) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    let pairs = |values: &std::collections::BTreeMap<String, Vec<String>>| {
        let each = values
            .iter()
            .map(|(name, values)| format!("{name}={}", values.join(",")));
        each.collect::<Vec<_>>().join(" ")
    };
    match &facts.request {
        RecordedRequest::Http {
            host,
            route,
            params,
            query,
            headers,
            ..
        } => {
            lines.push(("host", host.clone()));
            lines.push((
                "route",
                route
                    .clone()
                    .unwrap_or_else(|| "none of the templates".to_owned()),
            ));
            let params: Vec<String> = params
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            lines.push(("params", params.join(" ")));
            lines.push(("query", pairs(query)));
            lines.push(("headers", pairs(headers)));
        }
        RecordedRequest::Grpc { host, headers, .. } => {
            lines.push(("host", host.clone()));
            lines.push(("headers", pairs(headers)));
        }
        RecordedRequest::Tcp { sni } => lines.push(("sni", sni.clone().unwrap_or_default())),
    }
    match &facts.user {
        Some(user) => {
            lines.push(("user", user.id.clone()));
            lines.push(("scopes", user.scopes.join(" ")));
            lines.push(("groups", user.groups.join(" ")));
        }
        None => lines.push(("user", "none".to_owned())),
    }
    lines.retain(|(_, text)| !text.is_empty());
    lines
}

/// `403 authz.denied`, in the access log's names.
fn answered(decision: &Value) -> Option<String> {
    let status = decision.get("status")?.as_u64()?;
    let reason = decision
        .get("reason")
        .and_then(Value::as_str)
        .unwrap_or_default();
    Some(format!("{status} {reason}").trim_end().to_owned())
}

fn policy_line(explanation: &PolicyExplanation) -> String {
    let effect = match explanation.policy.effect {
        Effect::Forbid => "forbid",
        Effect::Permit => "permit",
    };
    let outcome = match &explanation.outcome {
        PolicyOutcome::Holds => "holds".to_owned(),
        PolicyOutcome::OutOfScope { part, wants, saw } => {
            format!("is about another {part}: it wants {wants}, and this is {saw}")
        }
        PolicyOutcome::ConditionFalse { condition, saw } => match saw {
            Some(saw) => format!("does not hold: {condition} is false, since {saw}"),
            None => format!("does not hold: {condition} is false"),
        },
        PolicyOutcome::Errs { error } => format!("cannot be evaluated: {error}"),
    };
    printable(&format!("{effect} {} {outcome}", explanation.policy.name))
}
