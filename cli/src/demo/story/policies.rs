//! Requests that policies refuse, and their explanation.

use serde_json::json;

use super::{
    super::{
        mesh::Mesh,
        report::Outcome,
        wire::{request, text_at},
    },
    calls::{self, ORDERS, PAYMENTS, Traced, reason},
    shared::Shared,
};
use crate::{explain, failure::Failure};

const ONLY_ORDERS: &str = "payments/payments#only-orders";

pub(super) async fn forbidden(mesh: &Mesh<'_>, shared: &mut Shared) -> Result<Outcome, Failure> {
    let mut outcome = Outcome::expecting(format!(
        "403 by policy {ONLY_ORDERS}; the program receives nothing"
    ));
    let charge = json!({"item": "battlement", "quantity": 1});
    let before = mesh.payments.requests().await?;
    let request = request(
        "POST",
        PAYMENTS,
        "/charges",
        Some(&shared.token),
        Some(&charge),
    );
    let Traced { reply, trace } = calls::call(mesh, &mesh.web, request).await?;
    let seen = mesh.payments.requests().await?.saturating_sub(before);
    let policy = reply.text("/policy");
    outcome.observed(format!(
        "{} {} by {policy}",
        reply.status,
        reason(reply.status)
    ));
    outcome.must(reply.status == 403, || {
        format!("payments answered {} {}", reply.status, reply.json())
    });
    outcome.must(policy == ONLY_ORDERS, || {
        format!("the policy is `{policy}`")
    });
    outcome.must(seen == 0, || {
        "the program payments received the request".to_owned()
    });
    let line = trace.inbound(&mesh.payments).await;
    let src = text_at(&line, "/src");
    outcome.must(src == mesh.web.identity(), || {
        format!("the sidecar of payments identified the caller as `{src}`")
    });
    shared.decision = reply.text("/decision_id");
    outcome.note(format!("response to {src}: {}", reply.text("/detail")));
    outcome.note(format!("decision {}", shared.decision));
    outcome.fact("policy", policy);
    outcome.fact("decision_id", shared.decision.as_str());
    outcome.fact("src", src);
    Ok(outcome)
}

pub(super) async fn explain(mesh: &Mesh<'_>, shared: &Shared) -> Result<Outcome, Failure> {
    let mut outcome = Outcome::expecting(format!(
        "the recorded facts, evaluated again, are denied by {ONLY_ORDERS}"
    ));
    outcome.must(!shared.decision.is_empty(), || {
        "no decision to explain".to_owned()
    });
    let explained = explain::look_up(&mesh.control_plane, &shared.decision).await?;
    let then = explained.then();
    let determining = then.map(|then| then.determining.as_slice());
    let determining = determining.unwrap_or_default().iter();
    let policies: Vec<String> = determining.map(ToString::to_string).collect();
    outcome.observed(explained.summary());
    outcome.must(then.is_some_and(|then| !then.allowed), || {
        "the explanation does not show a denial by policies".to_owned()
    });
    outcome.must(policies == [ONLY_ORDERS], || {
        format!("the explanation names {}", policies.join(", "))
    });
    for line in explained.short() {
        outcome.note(line);
    }
    outcome.note(format!(
        "full explanation: merlon explain {} --control-plane-socket {}",
        shared.decision,
        mesh.control_plane.socket().display()
    ));
    outcome.fact("decision_id", shared.decision.as_str());
    outcome.fact("determining", policies);
    Ok(outcome)
}

pub(super) async fn not_permitted(mesh: &Mesh<'_>, shared: &Shared) -> Result<Outcome, Failure> {
    let mut outcome =
        Outcome::expecting("403 because no policy permits it; the program receives nothing");
    let before = mesh.orders.requests().await?;
    let request = request("DELETE", ORDERS, "/orders/7", Some(&shared.token), None);
    let Traced { reply, trace } = calls::call(mesh, &mesh.web, request).await?;
    let seen = mesh.orders.requests().await?.saturating_sub(before);
    outcome.observed(format!("{} {}", reply.status, reason(reply.status)));
    outcome.must(reply.status == 403, || {
        format!("orders answered {} {}", reply.status, reply.json())
    });
    outcome.must(reply.text("/reason") == "authz.denied", || {
        format!("the reason is `{}`", reply.text("/reason"))
    });
    outcome.must(seen == 0, || {
        "the program orders received the request".to_owned()
    });
    let line = trace.inbound(&mesh.orders).await;
    outcome.note(format!(
        "{}: {}",
        text_at(&line, "/src"),
        text_at(&line, "/cause")
    ));
    outcome.fact("reason", reply.text("/reason"));
    outcome.fact("decision_id", reply.text("/decision_id"));
    Ok(outcome)
}
