//! The story of the demo: each step sends real requests and checks their results.

mod calls;
mod edits;
mod policies;
mod rotation;
mod shared;
mod tokens;

use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::{
    faults::{self, Undo},
    mesh::Mesh,
    report::{Outcome, Report},
    sabotage::Sabotage,
};
use crate::failure::Failure;
use shared::Shared;

/// The steps after the start, in order, each with its title.
const STEPS: [(&str, &str); 15] = [
    (
        "allowed",
        "Alice checks out: web calls orders, orders calls payments",
    ),
    ("no-token", "The same request without a token"),
    ("forged-signature", "A token with a forged signature"),
    ("expired", "A token that expired two minutes ago"),
    ("wrong-audience", "A valid token with the audience payments"),
    (
        "public-key-as-secret",
        "A token signed with the issuer's public key as an HS256 secret",
    ),
    (
        "algorithm-none",
        "A token with the algorithm none and no signature",
    ),
    ("forbidden", "web calls payments directly"),
    (
        "explain",
        "Why was that refused? `merlon explain` evaluates it again",
    ),
    (
        "not-permitted",
        "web tries to delete an order, which no policy permits",
    ),
    ("rate-limited", "orders calls payments too often"),
    ("bad-body", "An order whose quantity is not a number"),
    ("rotation", "New keys and certificates under traffic"),
    (
        "policy-edit",
        "The security team freezes all changes by editing one file",
    ),
    ("broken-policy", "A policy with a mistake is saved"),
];

/// Runs all steps, or up to the last sabotaged one, or to the first process that exits.
pub(crate) async fn run(mesh: &mut Mesh<'_>, report: &mut Report, sabotages: &[Sabotage]) {
    let mut shared = Shared::default();
    let mut left = sabotages.len();
    for (name, title) in STEPS {
        let sabotage = sabotages.iter().find(|it| it.is_of(name)).copied();
        let began = Instant::now();
        let outcome = step(name, mesh, &mut shared, sabotage).await;
        let mut outcome = outcome.unwrap_or_else(|failure| {
            let mut outcome = Outcome::expecting("the step can run");
            outcome.observed("the step could not run");
            outcome.problem(failure.message());
            outcome
        });
        if !outcome.is_ok() {
            // A process that exited may be the cause; its exit takes a moment to be reported.
            sleep(Duration::from_millis(100)).await;
        }
        let exit = mesh.children.unexpected_exit();
        if let Some(exit) = &exit {
            outcome.problem(exit.to_string());
        }
        report.step(name, title, outcome, began.elapsed());
        if let Some(exit) = exit {
            report.abort(&format!(
                "the demo cannot continue after step `{name}`: {exit}"
            ));
            return;
        }
        if sabotage.is_some() {
            left -= 1;
            if left == 0 {
                return;
            }
        }
    }
}

async fn step(
    name: &str,
    mesh: &mut Mesh<'_>,
    shared: &mut Shared,
    sabotage: Option<Sabotage>,
) -> Result<Outcome, Failure> {
    let undo = match sabotage {
        Some(sabotage) => faults::inject(sabotage, mesh).await?,
        None => Undo::Nothing,
    };
    shared.sabotaged = sabotage.is_some();
    if shared.token.is_empty() {
        shared.token = mesh.token("alice", "orders", 3_600).await?;
    }
    let outcome = run_step(name, mesh, shared).await;
    undo.apply(mesh).await?;
    outcome
}

async fn run_step(name: &str, mesh: &Mesh<'_>, shared: &mut Shared) -> Result<Outcome, Failure> {
    match name {
        "allowed" => calls::allowed(mesh, shared).await,
        "no-token" => tokens::none(mesh).await,
        "forged-signature" => tokens::forged(mesh).await,
        "expired" => tokens::expired(mesh).await,
        "wrong-audience" => tokens::wrong_audience(mesh).await,
        "public-key-as-secret" => tokens::public_key_as_secret(mesh).await,
        "algorithm-none" => tokens::algorithm_none(mesh).await,
        "forbidden" => policies::forbidden(mesh, shared).await,
        "explain" => policies::explain(mesh, shared).await,
        "not-permitted" => policies::not_permitted(mesh, shared).await,
        "rate-limited" => calls::rate_limited(mesh).await,
        "bad-body" => calls::bad_body(mesh, shared).await,
        "rotation" => rotation::rotate(mesh, shared).await,
        "policy-edit" => edits::policy_edit(mesh, shared).await,
        "broken-policy" => edits::broken_policy(mesh, shared).await,
        _ => Err(Failure::runtime(format!("no step `{name}`"))),
    }
}
