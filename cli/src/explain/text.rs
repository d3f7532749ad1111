//! Explanations as text.

use merlon_policy::{
    decision::Effect,
    explain::{PolicyExplanation, PolicyOutcome},
    record::{RecordedFacts, RecordedRequest},
};

use super::explained::{Explained, PolicyResults, Today, Verdict};
use crate::{
    control_plane::{DecisionOutcome, RefusedRequest},
    output::printable,
};

/// The full explanation.
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
            line("request", &request(facts));
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
            line("request", &refused_request(asked));
            line("when", &asked.ts.to_string());
            line("from", &asked.src_address);
            line("direction", &asked.direction);
        }
        (None, None) => {}
    }
    if outcome.reason.is_some() {
        line("response", &refusal(outcome));
        line("place", outcome.place.as_deref().unwrap_or_default());
        if explained.verdict != Verdict::Denied {
            line("cause", outcome.cause.as_deref().unwrap_or_default());
        }
        line("fix", fix(outcome).unwrap_or_default());
    }
    line("proxy", &record.proxy);
    let version = &record.snapshot_version;
    line("snapshot", version.get(..12).unwrap_or(version));
    lines.push(String::new());
    match &explained.policies {
        Some(policies) => lines.extend(policy_results(policies, explained.verdict)),
        None => {
            let asked = record.decision.asked.as_ref();
            let outbound = asked.is_some_and(|asked| asked.direction == "outbound");
            lines.push(match outbound {
                true => "Policies   not evaluated: the request did not reach the proxy of its destination, which evaluates them".to_owned(),
                false => "Policies   not evaluated: the request was refused before its service was known".to_owned(),
            });
        }
    }
    lines
}

/// The request, and the result of each policy.
pub(super) fn short(explained: &Explained) -> Vec<String> {
    let facts = explained.record.facts.as_ref();
    let mut lines: Vec<String> = facts
        .map(|facts| printable(&request(facts)))
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
            format!(
                "denied by {}, before policies were evaluated",
                check(reason)
            )
        }
        Verdict::RefusedAfter => {
            format!("denied by {}, after policies permitted it", check(reason))
        }
        Verdict::Failed => format!("permitted, but failed: {}", printable(reason)),
    };
    format!("Decision {}: {verdict}", printable(&explained.id))
}

/// The check that refuses with this reason.
fn check(reason: &str) -> &'static str {
    match reason.split('.').next().unwrap_or_default() {
        "authn" => "authentication",
        "rate" => "a rate limit",
        "validate" => "request validation",
        "http" => "HTTP checks",
        "egress" => "the egress rule of the mesh",
        "tls" => "peer authentication",
        "config" => "missing configuration",
        "overload" => "the limit on requests in flight",
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

/// How to fix it, for reasons with a known fix.
fn fix(outcome: &DecisionOutcome) -> Option<&'static str> {
    Some(match outcome.reason.as_deref()? {
        "authn.missing" => {
            "send `Authorization: Bearer …` with a token from an issuer in the service's RequestAuthentication"
        }
        "authn.malformed" => {
            "send exactly one `Authorization: Bearer …`, and no token in the query"
        }
        "authn.keys_unavailable" => {
            "the proxy could not fetch the issuer's keys and retries; its log shows the cause"
        }
        "rate.limited" => "wait for the time in `Retry-After`, or raise the limit in its RateLimit",
        "egress.denied" => "the MeshConfig has `outbound: deny`; call a Service of the mesh",
        "config.unavailable" => {
            "the proxy needs its control plane; see `merlon proxy status` and the log of the proxy"
        }
        "upstream.dns" => {
            "neither a Service of the mesh nor DNS has this name; `merlon proxy config` lists the services that the proxy knows"
        }
        "upstream.loop" => {
            "the host and port are the proxy's own: call a Service of the mesh by its name, and check the `targetPort` of the Service"
        }
        "http.loop" => {
            "the request runs in a circle: check the programs and proxies on its way that forward requests by their `Host`"
        }
        "upstream.connect" | "upstream.connect_timeout" => {
            "check that the program runs and listens on the address of its Workload and the port of its Service"
        }
        _ => return None,
    })
}

fn policy_results(policies: &PolicyResults, verdict: Verdict) -> Vec<String> {
    let then = &policies.then;
    let mut lines = vec![match verdict.reached_policies() {
        true => "Policies evaluated".to_owned(),
        false => "Policies, if evaluated with what was known at the refusal".to_owned(),
    }];
    if then.policies.is_empty() {
        lines.push("  none: no policy applies to this service".to_owned());
    }
    let each = then.policies.iter();
    lines.extend(each.map(|policy| format!("  {}", policy_line(policy))));
    lines.push(String::new());
    let title = match verdict.reached_policies() {
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

fn today(policies: &PolicyResults, verdict: Verdict) -> String {
    let result = match &policies.today {
        Today::Same => "same result: the policies have not changed".to_owned(),
        Today::Other(now) if now.allowed == policies.then.allowed => {
            format!("same result with changed policies: {}", now.summary)
        }
        Today::Other(now) => format!("different result: {}", now.summary),
        Today::Gone => return "the service is no longer in the mesh".to_owned(),
        Today::Unknown(why) => format!("unknown: {why}"),
    };
    match verdict {
        Verdict::Allowed | Verdict::Denied => result,
        Verdict::RefusedBefore | Verdict::RefusedAfter => {
            format!(
                "{result}. Only policies are evaluated again, not the check that refused the request"
            )
        }
        Verdict::Failed => {
            format!("{result}. Only policies are evaluated again, the upstream is not called")
        }
    }
}

/// `spiffe://…: GET /x to host nowhere.example`.
fn refused_request(asked: &RefusedRequest) -> String {
    let who = asked.src.as_deref().unwrap_or("unknown caller");
    let what = match (&asked.method, &asked.path) {
        (Some(method), Some(path)) => format!("{method} {path}"),
        _ if asked.protocol == "tcp" => "TCP connection".to_owned(),
        _ => "unreadable request".to_owned(),
    };
    let host = asked.host.as_ref().map(|host| format!(" to host {host}"));
    let service = asked.dst.as_ref().map(|dst| format!(", for {dst}"));
    format!(
        "{who}: {what}{}{}",
        host.unwrap_or_default(),
        service.unwrap_or_default()
    )
}

/// `spiffe://…: POST /charges to payments/payments, port 80`.
fn request(facts: &RecordedFacts) -> String {
    let what = match &facts.request {
        RecordedRequest::Http { method, path, .. } => {
            format!("{method} {path} to {}", facts.service)
        }
        RecordedRequest::Grpc {
            service, method, ..
        } => {
            format!("gRPC {service}/{method} to {}", facts.service)
        }
        RecordedRequest::Tcp { .. } => format!("TCP connection to {}", facts.service),
    };
    format!("{}: {what}, port {}", facts.principal, facts.port)
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
                    .unwrap_or_else(|| "no template matches".to_owned()),
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
        PolicyOutcome::Holds => "matches".to_owned(),
        PolicyOutcome::OutOfScope { part, wants, saw } => {
            format!("does not match the {part}: requires {wants}, got {saw}")
        }
        PolicyOutcome::ConditionFalse { condition, saw } => match saw {
            Some(saw) => format!("does not match: {condition} is false because {saw}"),
            None => format!("does not match: {condition} is false"),
        },
        PolicyOutcome::Error { error } => format!("cannot be evaluated: {error}"),
    };
    printable(&format!("{effect} {} {outcome}", explanation.policy.name))
}
