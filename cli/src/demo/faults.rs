//! The faults that a sabotaged demo injects before a step, and how each is undone.

use rustix::process::Signal;

use super::{
    mesh::Mesh,
    resources::{ORDERS_CEDAR, PAYMENTS_CEDAR, REQUESTS, TOKENS},
    sabotage::Sabotage,
};
use crate::failure::Failure;

/// Injects the fault before the step.
pub(crate) async fn inject(sabotage: Sabotage, mesh: &mut Mesh<'_>) -> Result<Undo, Failure> {
    match sabotage {
        // Injected when the processes start, or in the step itself.
        Sabotage::Start
        | Sabotage::ForgedSignature
        | Sabotage::PolicyEdit
        | Sabotage::BrokenPolicy => Ok(Undo::Nothing),
        Sabotage::Allowed => kill(mesh, "payments"),
        Sabotage::Explain => kill(mesh, "control-plane"),
        Sabotage::Rotation => {
            mesh.children.signal("control-plane", Signal::STOP)?;
            Ok(Undo::Continue("control-plane"))
        }
        Sabotage::NoToken => edit(mesh, TOKENS, "required: true", "required: false").await,
        Sabotage::Expired => edit(mesh, TOKENS, "clockSkew: 30s", "clockSkew: 5m").await,
        Sabotage::WrongAudience => {
            edit(
                mesh,
                TOKENS,
                "audiences: [orders]",
                "audiences: [orders, payments]",
            )
            .await
        }
        Sabotage::PublicKeyAsSecret | Sabotage::AlgorithmNone => {
            let text = mesh.resources.read(TOKENS)?;
            edit(mesh, TOKENS, &text, "# Tokens are not checked.\n").await
        }
        Sabotage::Forbidden => edit(mesh, PAYMENTS_CEDAR, "forbid (", "permit (").await,
        Sabotage::NotPermitted => {
            let from = "action in Action::\"read\", resource";
            edit(
                mesh,
                ORDERS_CEDAR,
                from,
                "action in Action::\"http\", resource",
            )
            .await
        }
        Sabotage::RateLimited => {
            edit(
                mesh,
                REQUESTS,
                "requests: 50, per: 1s}\n      burst: 10",
                "requests: 50000, per: 1s}\n      burst: 10000",
            )
            .await
        }
        Sabotage::BadBody => {
            edit(
                mesh,
                REQUESTS,
                "{type: integer, minimum: 1, maximum: 100}",
                "{}",
            )
            .await
        }
    }
}

/// How to undo a fault, so that only one step fails.
#[derive(Debug)]
pub(crate) enum Undo {
    Nothing,
    Text(&'static str, String),
    Continue(&'static str),
}

impl Undo {
    pub(crate) async fn apply(self, mesh: &Mesh<'_>) -> Result<(), Failure> {
        match self {
            Self::Nothing => Ok(()),
            Self::Continue(name) => mesh.children.signal(name, Signal::CONT),
            Self::Text(file, text) => {
                let before = mesh.proxies().await?;
                mesh.resources.put(file, &text)?;
                mesh.await_change(&before).await
            }
        }
    }
}

async fn edit(mesh: &Mesh<'_>, file: &'static str, from: &str, to: &str) -> Result<Undo, Failure> {
    let text = mesh.resources.read(file)?;
    let changed = text.replace(from, to);
    if changed == text {
        return Err(Failure::runtime(format!(
            "cannot sabotage `{file}`: it has no `{from}`"
        )));
    }
    let before = mesh.proxies().await?;
    mesh.resources.put(file, &changed)?;
    mesh.await_change(&before).await?;
    Ok(Undo::Text(file, text))
}

/// Kills a process. The demo must notice that itself.
fn kill(mesh: &Mesh<'_>, name: &str) -> Result<Undo, Failure> {
    mesh.children.signal(name, Signal::KILL)?;
    Ok(Undo::Nothing)
}
