//! Sabotage: one thing made wrong, so that tests see the demo notice it. Nothing here fakes a result.

use clap::ValueEnum;
use rustix::process::Signal;

use super::{
    mesh::Mesh,
    resources::{ORDERS_CEDAR, PAYMENTS_CEDAR, REQUESTS, TOKENS},
};
use crate::failure::Failure;

/// The step to sabotage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sabotage {
    /// A sidecar is given another workload's join token.
    Start,
    /// A program is dead.
    Allowed,
    /// Tokens are not required.
    NoToken,
    /// The issuer publishes the forger's key.
    ForgedSignature,
    /// Clocks may differ by more than the token is late.
    Expired,
    /// Tokens for others are accepted.
    WrongAudience,
    /// Nobody looks at tokens.
    PublicKeyAsSecret,
    /// Nobody looks at tokens.
    AlgorithmNone,
    /// The policy says `permit` where it must say `forbid`.
    Forbidden,
    /// A policy permits too much.
    NotPermitted,
    /// The control plane is killed.
    Explain,
    /// The limit is far too high.
    RateLimited,
    /// The schema accepts everything.
    BadBody,
    /// The control plane hangs, so that nobody signs.
    Rotation,
    /// The edited policy does not compile.
    PolicyEdit,
    /// The broken policy is a good one.
    BrokenPolicy,
}

impl Sabotage {
    /// As the step is called.
    pub(crate) fn is_of(self, step: &str) -> bool {
        self.to_possible_value()
            .is_some_and(|value| value.get_name() == step)
    }

    /// Done before the step.
    pub(crate) async fn begin(self, mesh: &mut Mesh<'_>) -> Result<Undo, Failure> {
        match self {
            // Done at the start of the processes, or in the step itself.
            Self::Start | Self::ForgedSignature | Self::PolicyEdit | Self::BrokenPolicy => {
                Ok(Undo::Nothing)
            }
            Self::Allowed => kill(mesh, "payments"),
            Self::Explain => kill(mesh, "control-plane"),
            Self::Rotation => {
                mesh.children.signal("control-plane", Signal::STOP)?;
                Ok(Undo::Continue("control-plane"))
            }
            Self::NoToken => edit(mesh, TOKENS, "required: true", "required: false").await,
            Self::Expired => edit(mesh, TOKENS, "clockSkew: 30s", "clockSkew: 5m").await,
            Self::WrongAudience => {
                edit(
                    mesh,
                    TOKENS,
                    "audiences: [orders]",
                    "audiences: [orders, payments]",
                )
                .await
            }
            Self::PublicKeyAsSecret | Self::AlgorithmNone => {
                let text = mesh.resources.read(TOKENS)?;
                edit(mesh, TOKENS, &text, "# Nobody looks at tokens.\n").await
            }
            Self::Forbidden => edit(mesh, PAYMENTS_CEDAR, "forbid (", "permit (").await,
            Self::NotPermitted => {
                let from = "action in Action::\"read\", resource";
                edit(
                    mesh,
                    ORDERS_CEDAR,
                    from,
                    "action in Action::\"http\", resource",
                )
                .await
            }
            Self::RateLimited => {
                edit(
                    mesh,
                    REQUESTS,
                    "requests: 50, per: 1s}\n      burst: 10",
                    "requests: 50000, per: 1s}\n      burst: 10000",
                )
                .await
            }
            Self::BadBody => {
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
}

/// How to make it right again, so that only one step fails.
#[derive(Debug)]
pub(crate) enum Undo {
    Nothing,
    Text(&'static str, String),
    Continue(&'static str),
}

impl Undo {
    pub(crate) async fn end(self, mesh: &Mesh<'_>) -> Result<(), Failure> {
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
            "`{file}` has no `{from}` to sabotage"
        )));
    }
    let before = mesh.proxies().await?;
    mesh.resources.put(file, &changed)?;
    mesh.await_change(&before).await?;
    Ok(Undo::Text(file, text))
}

/// The death is left to be noticed.
fn kill(mesh: &Mesh<'_>, name: &str) -> Result<Undo, Failure> {
    mesh.children.signal(name, Signal::KILL)?;
    Ok(Undo::Nothing)
}
