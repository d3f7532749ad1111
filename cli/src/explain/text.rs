//! An explanation, for people.

use merlon_policy::{
    decision::Effect,
    explain::{PolicyExplanation, PolicyOutcome},
    record::{RecordedFacts, RecordedRequest},
};

use super::{Explained, Judgement, Today, Verdict};
use crate::{
    control_plane::{Asked, DecisionOutcome},
    output::printable,
};

/// All of it.
pub(super) fn lines(explained: &Explained) -> Vec<String> {
    let record = &explained.record;
    let outcome = &record.decision.outcome;
    let mut lines = vec![headline(explained)];
    let mut line = |name: &str, text: &str| {
        if !text.is_empty() {
            lines.push(format!("  {name:<10} {}", printable(text)));
        }
    };
    match (&record.facts, &record.decision.asked) {
        (Some(facts), _) => {
            line("asked", &asked(facts));
            line("when", &facts.now.to_string());
            line("from", &facts.source_ip.to_string());
            if facts.client_ip != facts.source_ip {
                line("client", &facts.client_ip.to_string());
            }
            for (name, text) in details(facts) {
                line(name, &text);
            }
        }
        (None, Some(asked)) => {
            line("asked", &heard(asked));
            line("when", &asked.ts.to_string());
            line("from", &asked.src_address);
            line("direction", &asked.direction);
        }
        (None, None) => {}
    }
    if outcome.reason.is_some() {
        line("answered", &refusal(outcome));
        line("place", outcome.place.as_deref().unwrap_or_default());
        if explained.verdict != Verdict::Denied {
            line("cause", outcome.cause.as_deref().unwrap_or_default());
        }
        line("mend", mending(outcome).unwrap_or_default());
    }
    line("proxy", &record.proxy);
    let version = &record.snapshot_version;
    line("snapshot", version.get(..12).unwrap_or(version));
    lines.push(String::new());
    match &explained.policies {
        Some(policies) => lines.extend(judgement(policies, explained.verdict)),
        None => {
            let asked = record.decision.asked.as_ref();
            let outbound = asked.is_some_and(|asked| asked.direction == "outbound");
            lines.push(match outbound {
                true => "Policies   are asked by the proxy at the destination, which this did not reach".to_owned(),
                false => "Policies   were not asked: it was refused before it was known which service is meant".to_owned(),
            });
        }
    }
    lines
}

/// What was asked, and what each policy says.
pub(super) fn short(explained: &Explained) -> Vec<String> {
    let facts = explained.record.facts.as_ref();
    let mut lines: Vec<String> = facts
        .map(|facts| printable(&asked(facts)))
        .into_iter()
        .collect();
    let policies = explained.then().map(|then| then.policies.as_slice());
    lines.extend(policies.unwrap_or_default().iter().map(policy_line));
    lines
}

fn headline(explained: &Explained) -> String {
    let outcome = &explained.record.decision.outcome;
    let reason = outcome.reason.as_deref().unwrap_or_default();
    let verdict = match explained.verdict {
        Verdict::Allowed => "allowed".to_owned(),
        Verdict::Denied => "denied by policy".to_owned(),
        Verdict::RefusedBefore => {
            format!("denied by {}, before any policy was asked", check(reason))
        }
        Verdict::RefusedAfter => format!("denied by {}, after policy permitted it", check(reason)),
        Verdict::Failed => format!("not denied, but failed: {}", printable(reason)),
    };
    format!("Decision {}: {verdict}", printable(&explained.id))
}

/// Who refuses with a reason.
fn check(reason: &str) -> &'static str {
    match reason.split('.').next().unwrap_or_default() {
        "authn" => "authentication",
        "rate" => "a rate limit",
        "validate" => "request validation",
        "http" => "the checks of HTTP",
        "egress" => "the mesh's rule for destinations outside",
        "tls" => "identity",
        "config" => "the lack of a configuration",
        "overload" => "the limit of open requests",
        _ => "the proxy",
    }
}

/// `401 authn.missing: a bearer token is required`.
pub(super) fn refusal(outcome: &DecisionOutcome) -> String {
    let reason = outcome.reason.as_deref().unwrap_or_default();
    let detail = outcome.detail.as_deref().unwrap_or_default();
    match outcome.status {
        0 => reason.to_owned(),
        status => format!("{status} {reason}: {detail}"),
    }
}

/// What helps, where that is certain.
fn mending(outcome: &DecisionOutcome) -> Option<&'static str> {
    Some(match outcome.reason.as_deref()? {
        "authn.missing" => {
            "send `Authorization: Bearer …` with a token of an issuer that the service's RequestAuthentication names"
        }
        "authn.malformed" => "send one `Authorization: Bearer …`, and no token in the query",
        "authn.keys_unavailable" => {
            "the proxy could not fetch the issuer's keys; its log says why, and it tries again"
        }
        "rate.limited" => "wait as `Retry-After` says, or raise the limit in its RateLimit",
        "egress.denied" => "`outbound: deny` stands in the MeshConfig; call a Service of the mesh",
        "config.unavailable" => {
            "the proxy needs its control plane; `merlon proxy status` and its log say what is wrong"
        }
        "upstream.dns" => {
            "no Service of the mesh has this name, and neither has DNS; `merlon proxy config` lists what the proxy knows"
        }
        "upstream.connect" | "upstream.connect_timeout" => {
            "is the program up, and does it listen where its Workload and Service say?"
        }
        _ => return None,
    })
}

fn judgement(policies: &Judgement, verdict: Verdict) -> Vec<String> {
    let then = &policies.then;
    let mut lines = vec![match verdict.is_asked() {
        true => "Policies considered".to_owned(),
        false => "Policies, had they been asked with what was known by then".to_owned(),
    }];
    if then.policies.is_empty() {
        lines.push("  none: no policy concerns this service".to_owned());
    }
    let each = then.policies.iter();
    lines.extend(each.map(|policy| format!("  {}", policy_line(policy))));
    lines.push(String::new());
    let title = match verdict.is_asked() {
        true => "Decided",
        false => "Would be",
    };
    lines.push(format!("{title:<10} {}", printable(&then.summary)));
    lines.push(format!(
        "Today      {}",
        printable(&today(policies, verdict))
    ));
    lines
}

fn today(policies: &Judgement, verdict: Verdict) -> String {
    let policies_say = match &policies.today {
        Today::Same => "the same: the policies have not changed".to_owned(),
        Today::Other(now) if now.allowed == policies.then.allowed => {
            format!(
                "the policies have changed, their answer has not: {}",
                now.summary
            )
        }
        Today::Other(now) => format!("another answer of the policies: {}", now.summary),
        Today::Gone => return "the service is not in the mesh any more".to_owned(),
        Today::Unknown(why) => format!("not known: {why}"),
    };
    match verdict {
        Verdict::Allowed | Verdict::Denied => policies_say,
        Verdict::RefusedBefore | Verdict::RefusedAfter | Verdict::Failed => format!(
            "{policies_say}. What {} is not tried again: only policies are",
            match verdict {
                Verdict::Failed => "failed",
                _ => "refused it",
            }
        ),
    }
}

/// `GET /x of the host nowhere.example`.
fn heard(asked: &Asked) -> String {
    let who = asked.src.as_deref().unwrap_or("somebody");
    let what = match (&asked.method, &asked.path) {
        (Some(method), Some(path)) => format!("{method} {path}"),
        _ if asked.protocol == "tcp" => "a TCP connection".to_owned(),
        _ => "something that could not be read".to_owned(),
    };
    let host = asked
        .host
        .as_ref()
        .map(|host| format!(" of the host {host}"));
    let service = asked.dst.as_ref().map(|dst| format!(", meant for {dst}"));
    format!(
        "{who} asked for {what}{}{}",
        host.unwrap_or_default(),
        service.unwrap_or_default()
    )
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
