//! The deepest policies within the bounds of `text`.

use jiff::Timestamp;

use super::*;
use crate::{
    decision::Decision,
    facts::TcpFacts,
    mention::Mentions,
    stack,
    tests::{mesh, service},
    text::{MAX_NESTING, MAX_OPERATORS},
};

/// Conditions that hold, each at a bound.
fn deepest() -> Vec<String> {
    // The braces of `when` are one level, and `when` is one operator.
    let levels = MAX_NESTING - 1;
    let operators = MAX_OPERATORS - 1;
    let nested = |open: &str, inner: &str, close: &str, levels: usize| {
        open.repeat(levels) + inner + &close.repeat(levels)
    };
    let chain = |first: &str, next: &str, weight: usize| {
        first.to_owned() + &next.repeat(operators / weight - 1)
    };
    let now = "context.circumstances has now";
    vec![
        chain("false", " || true", 1),
        chain("true", " && true", 1),
        // Not constants, which would be folded.
        chain(now, &format!(" && {now}"), 3),
        format!("{} > 0", chain("1", " + 1", 1)),
        format!("{} < 1", chain("1", " - 1", 1)),
        nested("(", "true", ")", levels),
        nested("!!(", "true", ")", levels),
        nested(&format!("if {now} then "), "true", " else false", levels),
        nested(
            &format!("if !({now}) then false else "),
            "true",
            "",
            levels - 1,
        ),
        nested("true && (false || (", "true", "))", levels / 2),
        nested("(", "true", " && true && true && true && true)", levels),
        nested("(true && true && true && ", "true", ")", levels),
        format!("[{}].isEmpty() || true", nested("[", "1", "]", levels - 1)),
        format!("{} has a", nested("{a: ", "1", "}", levels)),
    ]
}

fn connection() -> RequestFacts<'static> {
    RequestFacts {
        kind: RequestKind::Tcp(TcpFacts::default()),
        source_ip: [127, 0, 0, 1].into(),
        client_ip: [127, 0, 0, 1].into(),
        port: 80,
        now: Timestamp::UNIX_EPOCH,
        user: None,
        tls: None,
    }
}

#[test]
fn the_deepest_policies_need_less_than_half_of_the_stack_and_apply() {
    let mesh = mesh();
    let mut applied = 0;
    for condition in deepest() {
        for effect in ["permit", "forbid"] {
            let text = format!(
                "@id(\"all\") @reason(\"t\") permit (principal, action, resource);\n\
                 @id(\"deep\") @reason(\"t\") {effect} (principal, action, resource) when {{ {condition} }};"
            );
            let text = match effect {
                "permit" => text.replacen("permit", "forbid", 1).replacen(
                    "resource);",
                    "resource) when { false };",
                    1,
                ),
                _ => text,
            };
            let short: String = condition.chars().take(60).collect();
            let service = service(&text);
            let compiled = stack::half(|| {
                drop(Mentions::of(&service.policies[0]));
                let prepared = Prepared::checked_by(|_, _| Vec::new(), &service, &mesh)?;
                drop(Prepared::new(&service, &mesh));
                Ok(ServicePolicy::new(&service, &mesh, prepared))
            });
            let policy = compiled
                .unwrap_or_else(|problems: Vec<PolicyProblem>| panic!("{short}: {}", problems[0]));
            let peer = policy.peer(&Principal::Anonymous);
            let decision = stack::of(stack::EVALUATION, || {
                policy.decide(&policy.candidates(&peer), &peer, &connection())
            });
            let permitted = matches!(decision, Decision::Permit(_));
            assert_eq!(permitted, effect == "permit", "{short}: {decision:?}");
            let recorded = policy.record(&peer, &connection(), &decision);
            let explained = stack::half(|| crate::tests::explained(&service, &mesh, &recorded));
            // Cedar's validator refuses some, such as a condition without facts.
            if let Ok(explanation) = explained {
                assert_eq!(explanation.allowed, permitted, "{short}");
                applied += 1;
            }
        }
    }
    assert!(applied > 0, "no condition passed the validator");
}
