//! Installs rules with `nft` or iptables.

use std::{
    fmt,
    io::{ErrorKind, Write as _},
    process::{Command, Stdio},
};

use crate::rules::{self, Family, INPUT, OUTPUT, Rules, TABLE};

/// The tools that install rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backend {
    Nftables,
    Iptables,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        })
    }
}

/// Why rules could not be changed or are not in force.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("there is neither `nft` nor `iptables-restore` in PATH")]
    Neither,
    #[error("there is no `{0}` in PATH")]
    Missing(&'static str),
    #[error("`{program}` cannot be started: {source}")]
    Start {
        program: &'static str,
        source: std::io::Error,
    },
    #[error("`{program}` failed: {stderr}")]
    Refused {
        program: &'static str,
        stderr: String,
    },
    #[error("the rules are not in force")]
    NotInForce,
    #[error("the rules of Merlon that are in force differ from these arguments or are incomplete")]
    Mismatch,
}

impl Failure {
    pub(crate) fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Neither | Self::Missing("nft") => Some("on Debian: apt-get install nftables"),
            Self::Missing(_) => Some("on Debian: apt-get install iptables"),
            Self::Refused { stderr, .. }
                if ["not permitted", "Permission denied", "you must be root"]
                    .iter()
                    .any(|sign| stderr.contains(sign)) =>
            {
                Some(
                    "CAP_NET_ADMIN and CAP_NET_RAW are required: run it as root, or add these capabilities to its container",
                )
            }
            Self::Refused { stderr, .. } if stderr.contains("not supported") => {
                Some("this kernel does not support the rules: try the other `--backend`")
            }
            Self::NotInForce | Self::Mismatch => {
                Some("run `merlon-intercept apply` with the same arguments")
            }
            _ => None,
        }
    }

    /// [`Failure::NotInForce`] if the program failed because a table, chain or rule does not exist.
    fn or_not_in_force(self) -> Self {
        match self {
            Self::Refused { stderr, .. } if is_absence(&stderr) => Self::NotInForce,
            other => other,
        }
    }

    pub(crate) fn code(&self) -> u8 {
        1
    }
}

impl Backend {
    /// The backend that this node supports. A dry run does not require that the kernel accepts it.
    pub(crate) fn find(dry_run: bool) -> Result<Self, Failure> {
        match run("nft", &["list", "tables"], "") {
            Ok(_) => return Ok(Self::Nftables),
            Err(Failure::Refused { .. }) if dry_run => return Ok(Self::Nftables),
            Err(_) => {}
        }
        match run("iptables-restore", &["--version"], "") {
            Ok(_) => Ok(Self::Iptables),
            Err(Failure::Missing(_)) => match run("nft", &["list", "tables"], "") {
                Err(Failure::Missing(_)) => Err(Failure::Neither),
                Err(why) => Err(why),
                Ok(_) => Ok(Self::Nftables),
            },
            Err(why) => Err(why),
        }
    }

    /// The rules as they would be installed.
    pub(crate) fn script(self, rules: &Rules) -> String {
        match self {
            Self::Nftables => rules.nftables(),
            Self::Iptables => {
                let mut text = String::new();
                for family in Family::ALL {
                    let Programs { tool, restore } = Programs::of(family);
                    text.push_str(&format!("# {restore} --noflush --wait\n"));
                    text.push_str(&rules.iptables(family));
                    for [chain, ours] in JUMPS {
                        text.push_str(&format!("# {tool} -t nat -A {chain} -p tcp -j {ours}\n"));
                    }
                }
                text
            }
        }
    }

    pub(crate) fn removal(self) -> String {
        match self {
            Self::Nftables => rules::nftables_removal(),
            Self::Iptables => {
                let mut text = String::new();
                for family in Family::ALL {
                    let tool = Programs::of(family).tool;
                    for [chain, ours] in JUMPS {
                        text.push_str(&format!("{tool} -t nat -D {chain} -p tcp -j {ours}\n"));
                        text.push_str(&format!("{tool} -t nat -F {ours}\n"));
                        text.push_str(&format!("{tool} -t nat -X {ours}\n"));
                    }
                }
                text
            }
        }
    }

    pub(crate) fn apply(self, rules: &Rules) -> Result<(), Failure> {
        match self {
            Self::Nftables => run("nft", &["-f", "-"], &rules.nftables()).map(drop),
            Self::Iptables => {
                for family in Family::ALL {
                    let Programs { tool, restore } = Programs::of(family);
                    let restored = run(restore, &["--noflush", "--wait"], &rules.iptables(family));
                    if lacks_family(restored, family)? {
                        continue;
                    }
                    for [chain, ours] in JUMPS {
                        if run(tool, &jump("-C", chain, ours), "").is_err() {
                            run(tool, &jump("-A", chain, ours), "")?;
                        }
                    }
                }
                Ok(())
            }
        }
    }

    pub(crate) fn remove(self) -> Result<(), Failure> {
        match self {
            Self::Nftables => run("nft", &["-f", "-"], &rules::nftables_removal()).map(drop),
            Self::Iptables => {
                for family in Family::ALL {
                    let tool = Programs::of(family).tool;
                    // Fails if permissions are missing. Failures below then mean that there is nothing to remove.
                    if lacks_family(run(tool, &["-w", "-t", "nat", "-S"], ""), family)? {
                        continue;
                    }
                    for [chain, ours] in JUMPS {
                        while run(tool, &jump("-D", chain, ours), "").is_ok() {}
                        if run(tool, &["-w", "-t", "nat", "-F", ours], "").is_ok() {
                            run(tool, &["-w", "-t", "nat", "-X", ours], "")?;
                        }
                    }
                }
                Ok(())
            }
        }
    }

    /// Removes the rules of both backends.
    pub(crate) fn remove_all() -> Result<(), Failure> {
        let (nftables, iptables) = (Self::Nftables.remove(), Self::Iptables.remove());
        match (nftables, iptables) {
            (Err(Failure::Missing(_)), Err(Failure::Missing(_))) => Err(Failure::Neither),
            (Err(Failure::Missing(_)), other) | (other, Err(Failure::Missing(_))) => other,
            (Err(why), _) | (_, Err(why)) => Err(why),
            (Ok(()), Ok(())) => Ok(()),
        }
    }

    /// Checks by the mark that all of these rules are in force and no other rules of Merlon.
    pub(crate) fn check(self, rules: &Rules) -> Result<(), Failure> {
        match self {
            Self::Nftables => {
                let listed = run("nft", &["list", "table", "inet", TABLE], "");
                let listed = listed.map_err(Failure::or_not_in_force)?;
                compare(&listed, &rules.mark(), rules.nft_count())
            }
            Self::Iptables => {
                for family in Family::ALL {
                    let tool = Programs::of(family).tool;
                    if lacks_family(run(tool, &["-w", "-t", "nat", "-S"], ""), family)? {
                        continue;
                    }
                    let mut listed = String::new();
                    for [chain, ours] in JUMPS {
                        run(tool, &jump("-C", chain, ours), "")
                            .map_err(Failure::or_not_in_force)?;
                        let rules = run(tool, &["-w", "-t", "nat", "-S", ours], "");
                        listed.push_str(&rules.map_err(Failure::or_not_in_force)?);
                    }
                    compare(&listed, &rules.mark(), rules.iptables_count(family))?;
                }
                Ok(())
            }
        }
    }
}

fn compare(listed: &str, mark: &str, count: usize) -> Result<(), Failure> {
    match listed.matches(mark).count() {
        found if found == count => Ok(()),
        0 if !listed.contains("merlon-") => Err(Failure::NotInForce),
        _ => Err(Failure::Mismatch),
    }
}

/// Whether the host does not support an address family, which then needs no rules.
fn lacks_family(ran: Result<String, Failure>, family: Family) -> Result<bool, Failure> {
    match ran {
        Err(Failure::Refused { stderr, .. })
            if family == Family::V6 && stderr.contains("Address family") =>
        {
            Ok(true)
        }
        other => other.map(|_| false),
    }
}

/// Whether the error output says that a table, chain or rule does not exist.
fn is_absence(stderr: &str) -> bool {
    [
        "No such file",
        "does not exist",
        "No chain/target/match",
        "Bad rule",
        "incompatible",
    ]
    .iter()
    .any(|sign| stderr.contains(sign))
}

/// The kernel's chains, and Merlon's chains that they jump to.
const JUMPS: [[&str; 2]; 2] = [["OUTPUT", OUTPUT], ["PREROUTING", INPUT]];

fn jump<'a>(what: &'a str, chain: &'a str, ours: &'a str) -> [&'a str; 9] {
    ["-w", "-t", "nat", what, chain, "-p", "tcp", "-j", ours]
}

struct Programs {
    tool: &'static str,
    restore: &'static str,
}

impl Programs {
    const fn of(family: Family) -> Self {
        match family {
            Family::V4 => Self {
                tool: "iptables",
                restore: "iptables-restore",
            },
            Family::V6 => Self {
                tool: "ip6tables",
                restore: "ip6tables-restore",
            },
        }
    }
}

/// Runs a program with an input and returns its standard output.
fn run(program: &'static str, arguments: &[&str], input: &str) -> Result<String, Failure> {
    let started = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = started.map_err(|source| match source.kind() {
        ErrorKind::NotFound => Failure::Missing(program),
        _ => Failure::Start { program, source },
    })?;
    let failed = |source| Failure::Start { program, source };
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(input.as_bytes()) {
            // The program ended without reading its input. Its error output is read below.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            other => other.map_err(failed)?,
        }
    }
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(Failure::Refused {
        program,
        stderr: stderr.trim().to_owned(),
    })
}
