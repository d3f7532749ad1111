//! The story that the demo tells: each step sends real requests and looks at what became of them.

mod calls;
mod edits;
mod policies;
mod rotation;
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

/// The steps after the start, in order, each with what is told of it.
const STEPS: [(&str, &str); 15] = [
    (
        "allowed",
        "Alice checks out: web calls orders, orders calls payments",
    ),
    ("no-token", "The same without a token"),
    ("forged-signature", "A token that somebody else signed"),
    ("expired", "A token that expired two minutes ago"),
    ("wrong-audience", "A good token, but meant for payments"),
    (
        "public-key-as-secret",
        "A token signed with the issuer's public key as an HS256 secret",
    ),
    ("algorithm-none", "A token that claims to need no signature"),
    ("forbidden", "web goes to payments behind orders' back"),
    ("explain", "Why was that? `merlon explain` asks again"),
    (
        "not-permitted",
        "web tries to delete an order, which no policy permits",
    ),
    ("rate-limited", "orders calls payments far too often"),
    ("bad-body", "An order whose quantity is no number"),
    (
        "rotation",
        "New keys and certificates in the middle of traffic",
    ),
    (
        "policy-edit",
        "The security team freezes all changes by editing one file",
    ),
    (
        "broken-policy",
        "Somebody saves a policy with a mistake in it",
    ),
];

/// What later steps need of earlier ones.
#[derive(Debug, Default)]
struct Scene {
    /// Alice's token.
    token: String,
    /// The decision that the step `forbidden` was answered with.
    decision: String,
    /// Whether the step itself is sabotaged.
    sabotaged: bool,
}

/// Tells all of it, or up to the first process that dies.
pub(crate) async fn tell(mesh: &mut Mesh<'_>, report: &mut Report, sabotage: Option<Sabotage>) {
    let mut scene = Scene::default();
    for (name, title) in STEPS {
        let began = Instant::now();
        let outcome = step(name, mesh, &mut scene, sabotage.filter(|it| it.is_of(name))).await;
        let mut outcome = outcome.unwrap_or_else(|failure| {
            let mut outcome = Outcome::expecting("the step can be made");
            outcome.observed("it could not");
            outcome.problem(failure.message());
            outcome
        });
        if !outcome.is_ok() {
            // A process that died may be why; its end takes a moment to be told.
            sleep(Duration::from_millis(100)).await;
        }
        let death = mesh.children.dead();
        if let Some(death) = &death {
            outcome.problem(death.to_string());
        }
        report.step(name, title, outcome, began.elapsed());
        let sabotaged = sabotage.is_some_and(|it| it.is_of(name));
        if let Some(death) = death {
            report.abort(&format!(
                "the demo cannot go on after step `{name}`: {death}"
            ));
            return;
        }
        if sabotaged {
            return;
        }
    }
}

async fn step(
    name: &str,
    mesh: &mut Mesh<'_>,
    scene: &mut Scene,
    sabotage: Option<Sabotage>,
) -> Result<Outcome, Failure> {
    let undo = match sabotage {
        Some(sabotage) => faults::inject(sabotage, mesh).await?,
        None => Undo::Nothing,
    };
    scene.sabotaged = sabotage.is_some();
    if scene.token.is_empty() {
        scene.token = mesh.token("alice", "orders", 3_600).await?;
    }
    let outcome = play(name, mesh, scene).await;
    undo.end(mesh).await?;
    outcome
}

async fn play(name: &str, mesh: &Mesh<'_>, scene: &mut Scene) -> Result<Outcome, Failure> {
    match name {
        "allowed" => calls::allowed(mesh, scene).await,
        "no-token" => tokens::none(mesh).await,
        "forged-signature" => tokens::forged(mesh).await,
        "expired" => tokens::expired(mesh).await,
        "wrong-audience" => tokens::wrong_audience(mesh).await,
        "public-key-as-secret" => tokens::public_key_as_secret(mesh).await,
        "algorithm-none" => tokens::algorithm_none(mesh).await,
        "forbidden" => policies::forbidden(mesh, scene).await,
        "explain" => policies::explain(mesh, scene).await,
        "not-permitted" => policies::not_permitted(mesh, scene).await,
        "rate-limited" => calls::rate_limited(mesh).await,
        "bad-body" => calls::bad_body(mesh, scene).await,
        "rotation" => rotation::rotate(mesh, scene).await,
        "policy-edit" => edits::policy_edit(mesh, scene).await,
        "broken-policy" => edits::broken_policy(mesh, scene).await,
        _ => Err(Failure::runtime(format!("there is no step `{name}`"))),
    }
}
