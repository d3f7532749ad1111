//! After the story, the mesh stays up for the user, who may kill any process and watch the effect.

use std::{fmt, time::Duration};

use merlon_config::unit::HumanDuration;
use tokio::time::{Instant, sleep};

use super::{
    children::{Children, UnexpectedExit},
    report::Report,
};
use crate::failure::Failure;

const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Reports each process that exits, and restarts it after `delay`, in which the user can see the effect. Returns only if a
/// restart fails.
pub(crate) async fn supervise(
    children: &mut Children,
    delay: Duration,
    report: &Report,
) -> Result<(), Failure> {
    let mut waiting: Vec<(String, Instant)> = Vec::new();
    loop {
        while let Some(exit) = children.unexpected_exit() {
            let role = Role::of(exit.name());
            report_exit(&exit, role, delay, report);
            if role != Role::Vault {
                waiting.push((exit.name().to_owned(), Instant::now() + delay));
            }
        }
        let now = Instant::now();
        let (due, later): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|(_, at)| *at <= now);
        waiting = later;
        for (name, _) in due {
            children.restart(&name)?;
            let pid = children.pid(&name).unwrap_or_default();
            report.line(&format!("`{name}` was restarted as process {pid}."));
        }
        sleep(POLL_INTERVAL).await;
    }
}

fn report_exit(exit: &UnexpectedExit, role: Role, delay: Duration, report: &Report) {
    report.line("");
    match exit.is_by_signal() {
        true => report.line(&format!("`{}` was killed.", exit.name())),
        false => report.line(&exit.to_string()),
    }
    report.line(&format!("  {role}"));
    if role != Role::Vault {
        let delay = HumanDuration(delay);
        report.line(&format!("  It will be restarted in {delay}."));
    }
}

/// The role of a process in the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    ControlPlane,
    Sidecar,
    Program,
    Issuer,
    Vault,
}

impl Role {
    fn of(name: &str) -> Self {
        match name {
            "control-plane" => Self::ControlPlane,
            "issuer" => Self::Issuer,
            "openbao" => Self::Vault,
            name if name.ends_with("-sidecar") => Self::Sidecar,
            _ => Self::Program,
        }
    }
}

/// The effect of its absence.
impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ControlPlane => {
                "Calls continue: the sidecars keep their last snapshot. Policy changes and `merlon proxy status` need the control plane."
            }
            Self::Sidecar => {
                "Its program can neither receive nor send calls. The sidecar restarts from its saved certificate and snapshot."
            }
            Self::Program => "Its sidecar answers 503 with the reason.",
            Self::Issuer => "Existing tokens stay valid: the sidecars have cached its keys.",
            Self::Vault => {
                "Calls continue until certificates expire. It kept everything in memory, so it is not restarted: press Ctrl-C and run the demo again."
            }
        })
    }
}
