//! Edits of resource files: a valid edit takes effect everywhere, an invalid one changes nothing.

use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, sleep};

use super::{
    super::{
        mesh::{Mesh, Workload, versions},
        report::Outcome,
        resources::{GUARDRAILS, ORDERS_CEDAR},
        wire::{self, request},
    },
    calls::{ORDERS, PAYMENTS, WEB},
    shared::Shared,
};
use crate::{check, failure::Failure};

const FREEZE: &str = "merlon-system/guardrails#freeze";

pub(super) async fn policy_edit(mesh: &Mesh<'_>, shared: &Shared) -> Result<Outcome, Failure> {
    let mut outcome = Outcome::expecting(format!(
        "all three sidecars refuse changes by {FREEZE} within 3 seconds, until the file is restored"
    ));
    let text = mesh.resources.read(GUARDRAILS)?;
    // Sabotage: a misspelt action does not compile, so it must not take effect.
    let action = if shared.sabotaged { "wirte" } else { "write" };
    let frozen = format!(
        "{text}
    // Added by the demo for a moment.
    @id(\"freeze\") @owner(\"security\") @reason(\"Changes are frozen while the incident lasts.\")
    forbid (principal, action in Action::\"{action}\", resource);
"
    );
    let began = Instant::now();
    mesh.resources.put(GUARDRAILS, &frozen)?;
    let calls = [
        (&mesh.web, &mesh.orders, ORDERS, "/orders"),
        (&mesh.orders, &mesh.payments, PAYMENTS, "/charges"),
        (&mesh.orders, &mesh.web, WEB, "/checkout"),
    ];
    let waiting = calls.map(|(from, at, host, path)| refusal(from, at, host, path, shared, began));
    let live = futures_util::future::join_all(waiting).await;
    mesh.resources.put(GUARDRAILS, &text)?;
    for (name, took) in &live {
        match took {
            Some(took) => outcome.note(format!(
                "in effect at the sidecar of {name} after {} ms",
                took.as_millis()
            )),
            None => outcome.problem(format!(
                "not in effect at the sidecar of {name} after 3 seconds"
            )),
        }
        outcome.fact(
            name,
            took.and_then(|took| u64::try_from(took.as_millis()).ok()),
        );
    }
    let slowest = live.iter().filter_map(|(_, took)| *took).max();
    if !outcome.is_ok() {
        outcome.observed("not in effect everywhere");
        return Ok(outcome);
    }
    outcome.observed(format!(
        "403 by {FREEZE} at all three sidecars, {} ms after the file was saved",
        slowest.unwrap_or_default().as_millis()
    ));
    let order = json!({"item": "battlement", "quantity": 1});
    let began = Instant::now();
    let status = loop {
        let request = request("POST", ORDERS, "/orders", Some(&shared.token), Some(&order));
        let reply = wire::send(mesh.web.outbound, request).await;
        let status = reply.map(|reply| reply.status);
        if matches!(status, Ok(201)) || began.elapsed() > TIMEOUT {
            break status;
        }
        sleep(Duration::from_millis(25)).await;
    };
    outcome.must(matches!(status, Ok(201)), || {
        format!("3 seconds after the file was restored, an order gets {status:?}")
    });
    outcome.note(format!(
        "file restored, and orders succeed again {} ms later",
        began.elapsed().as_millis()
    ));
    Ok(outcome)
}

/// The time after `began` at which the sidecar of `at` refuses a change by the new policy.
async fn refusal(
    from: &Workload,
    at: &Workload,
    host: &str,
    path: &str,
    shared: &Shared,
    began: Instant,
) -> (&'static str, Option<Duration>) {
    let body = json!({"item": "battlement", "quantity": 1});
    loop {
        let request = request("POST", host, path, Some(&shared.token), Some(&body));
        if let Ok(reply) = wire::send(from.outbound, request).await
            && reply.status == 403
            && reply.text("/policy") == FREEZE
        {
            return (at.name, Some(began.elapsed()));
        }
        if began.elapsed() > TIMEOUT {
            return (at.name, None);
        }
        // Stay below the rate limit of payments.
        sleep(Duration::from_millis(25)).await;
    }
}

pub(super) async fn broken_policy(mesh: &Mesh<'_>, shared: &Shared) -> Result<Outcome, Failure> {
    let mut outcome =
        Outcome::expecting("the control plane logs the error with its location; nothing changes");
    let text = mesh.resources.read(ORDERS_CEDAR)?;
    let broken = if shared.sabotaged {
        format!("{text}\n// This file is valid.\n")
    } else {
        text.replace("context.user.scopes", "context.user.scoops")
    };
    let log = mesh.children.log("control-plane");
    let length = log.metadata().map_or(0, |metadata| metadata.len());
    let before = mesh.settled().await?;
    mesh.resources.put(ORDERS_CEDAR, &broken)?;
    let logged = logged_error(&log, length).await;
    let problems = check::problems(mesh.resources.folder());
    let request = request("GET", ORDERS, "/orders/7", Some(&shared.token), None);
    let status = wire::send(mesh.web.outbound, request)
        .await
        .map(|reply| reply.status);
    let after = mesh.proxies().await?;
    mesh.resources.put(ORDERS_CEDAR, &text)?;

    match &logged {
        Some(line) => outcome.fact("control_plane_says", line.as_str()),
        None => outcome.problem("the control plane logged no error within 3 seconds"),
    }
    outcome.must(versions(&before) == versions(&after), || {
        "the snapshot of a sidecar changed".to_owned()
    });
    outcome.must(matches!(status, Ok(200)), || {
        format!("a request that was allowed now gets {status:?}")
    });
    match &problems {
        Some(problems) => {
            outcome.observed(
                "rejected by the control plane; all sidecars keep their snapshot, and requests succeed",
            );
            outcome
                .note("`merlon policy check` reports the same error before the file is deployed:");
            for line in problems
                .lines()
                .filter(|line| !line.trim().is_empty())
                .take(6)
            {
                outcome.note(format!("  {line}"));
            }
        }
        None => {
            outcome.observed("accepted");
            outcome.problem("`merlon policy check` finds no problem");
        }
    }
    Ok(outcome)
}

/// The first log line of the control plane about the broken file.
async fn logged_error(log: &std::path::Path, from: u64) -> Option<String> {
    let began = Instant::now();
    while began.elapsed() < TIMEOUT {
        let text = std::fs::read(log).unwrap_or_default();
        let new = text.get(usize::try_from(from).ok()?..).unwrap_or_default();
        let new = String::from_utf8_lossy(new);
        if let Some(line) = new.lines().find(|line| line.contains(ORDERS_CEDAR)) {
            return Some(line.to_owned());
        }
        sleep(Duration::from_millis(20)).await;
    }
    None
}

const TIMEOUT: Duration = Duration::from_secs(3);
