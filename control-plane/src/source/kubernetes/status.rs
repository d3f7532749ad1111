//! The `status` of a resource.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{acceptance::Verdict, counts::Count};

/// A condition that only some kinds have: its type, status, reason and message.
pub(crate) type ExtraCondition = (&'static str, (bool, &'static str, String));

/// The status that a resource should have. `before` is its present status.
pub(crate) fn status(
    verdict: &Verdict,
    count: Option<&Count>,
    extra: Option<ExtraCondition>,
    before: Option<&Value>,
    now: Timestamp,
) -> Value {
    let none = Count::default();
    let count = count.unwrap_or(&none);
    let proxies = format!("{}/{}", count.enforcing, count.of);
    let condition = |kind: &str, (status, reason, message): (bool, &str, String)| {
        let status = if status { "True" } else { "False" };
        let mut message: String = message.chars().take(8_000).collect();
        if message.is_empty() {
            message.push('-');
        }
        json!({
            "type": kind,
            "status": status,
            "reason": reason,
            "message": message,
            "observedGeneration": verdict.generation,
            "lastTransitionTime": since(before, kind, status)
                .unwrap_or_else(|| format!("{now:.0}")),
        })
    };
    let mut message = verdict.message.clone();
    if verdict.denied {
        message.push_str(
            "\nit was in force, so all requests to its targets are denied until it is valid",
        );
    } else if let (true, Some(version)) = (verdict.enforced, &verdict.in_force) {
        message.push_str(&format!(
            "\ngeneration {} stays in force",
            version.generation
        ));
    } else if !verdict.accepted && !verdict.enforced {
        message.push_str("\nno version is in force");
    }
    let accepted = (verdict.accepted, verdict.reason, message);
    let mut conditions = vec![
        condition("Accepted", accepted),
        condition("Programmed", programmed(verdict, count, &proxies)),
    ];
    conditions.extend(extra.map(|(kind, state)| condition(kind, state)));
    let mut status = json!({
        "observedGeneration": verdict.generation,
        "proxies": proxies,
        "conditions": conditions,
    });
    if let Some(version) = &verdict.in_force
        && let Some(map) = status.as_object_mut()
    {
        let kept = json!({ "generation": version.generation, "spec": version.spec });
        map.insert("inForce".to_owned(), kept);
    }
    status
}

fn programmed(verdict: &Verdict, count: &Count, proxies: &str) -> (bool, &'static str, String) {
    if verdict.denied {
        let message = "all requests to its targets are denied";
        return (false, "NotAccepted", message.to_owned());
    }
    if !verdict.enforced {
        return (false, "NotAccepted", "no version is in force".to_owned());
    }
    if let Some(version) = &verdict.in_force
        && version.generation != verdict.generation
    {
        let message = format!(
            "{proxies} proxies enforce generation {}, which stays in force",
            version.generation
        );
        return (false, "NotAccepted", message);
    }
    match &count.refusal {
        _ if count.of == 0 => {
            let message = "0/0 proxies: no affected proxy is connected".to_owned();
            // No proxy enforces it, and a client that waits for this condition waits for one that does.
            (false, "NoProxies", message)
        }
        _ if count.enforcing == count.of => (true, "Programmed", format!("{proxies} proxies")),
        Some(refusal) => (false, "Refused", format!("{proxies} proxies; {refusal}")),
        None => (false, "Pending", format!("{proxies} proxies")),
    }
}

/// When the condition's status last changed.
fn since(before: Option<&Value>, kind: &str, status: &str) -> Option<String> {
    let conditions = before?.get("conditions")?.as_array()?;
    let same = conditions
        .iter()
        .find(|one| one["type"] == kind && one["status"] == status)?;
    Some(same["lastTransitionTime"].as_str()?.to_owned())
}
