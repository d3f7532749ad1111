//! After the story: the mesh stays up for the user, who may kill any part of it and see what that does.

use std::{fmt, time::Duration};

use tokio::time::{Instant, sleep};

use super::{
    children::{Children, Death},
    report::Report,
};
use crate::failure::Failure;

/// How long a part stays away, so that its absence can be looked at.
const AWAY: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(200);

/// Tells of each process that ends and starts it again a while later. Returns only when one cannot be started.
pub(crate) async fn stay(children: &mut Children, report: &Report) -> Result<(), Failure> {
    let mut away: Vec<(String, Instant)> = Vec::new();
    loop {
        while let Some(death) = children.dead() {
            let part = Part::named(death.name());
            tell(&death, part, report);
            if part != Part::Vault {
                away.push((death.name().to_owned(), Instant::now() + AWAY));
            }
        }
        let now = Instant::now();
        let (due, later): (Vec<_>, Vec<_>) = away.into_iter().partition(|(_, at)| *at <= now);
        away = later;
        for (name, _) in due {
            children.start_again(&name)?;
            let pid = children.pid(&name).unwrap_or_default();
            report.say(&format!("`{name}` is started again, as process {pid}."));
        }
        sleep(LOOK).await;
    }
}

fn tell(death: &Death, part: Part, report: &Report) {
    report.say("");
    match death.is_by_signal() {
        true => report.say(&format!("`{}` is gone.", death.name())),
        false => report.say(&death.to_string()),
    }
    report.say(&format!("  {part}"));
    if part != Part::Vault {
        let seconds = AWAY.as_secs();
        report.say(&format!("  It is started again in {seconds} seconds."));
    }
}

/// What a process is to the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    ControlPlane,
    Sidecar,
    Program,
    Issuer,
    Vault,
}

impl Part {
    fn named(name: &str) -> Self {
        match name {
            "control-plane" => Self::ControlPlane,
            "issuer" => Self::Issuer,
            "openbao" => Self::Vault,
            name if name.ends_with("-sidecar") => Self::Sidecar,
            _ => Self::Program,
        }
    }
}

/// What its absence means.
impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ControlPlane => {
                "Calls go on: the sidecars keep their last good state. New policies and `merlon proxy status` wait for it."
            }
            Self::Sidecar => {
                "No call reaches its program, and none leaves it. It keeps its certificate and its state, and needs nobody to return."
            }
            Self::Program => "Its sidecar answers 503 for it, with the reason.",
            Self::Issuer => "The tokens that there are stay good: the sidecars know its keys.",
            Self::Vault => {
                "Calls go on until certificates end. It kept all in memory, so it is not started again: Ctrl-C, and begin anew."
            }
        })
    }
}
