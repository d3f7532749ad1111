//! Putting rules in force by the programs that a node has for it.

use std::{
    fmt,
    io::{ErrorKind, Write as _},
    process::{Command, Stdio},
};

use crate::rules::{self, Family, INPUT, OUTPUT, Rules, TABLE};

/// By what rules are written.
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

/// Why rules are not as they should be.
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
    #[error("`{program}` says: {said}")]
    Refused { program: &'static str, said: String },
    #[error("the rules are not in force")]
    NotInForce,
    #[error("other rules of Merlon's are in force than these arguments mean, or not all of them")]
    Others,
}

impl Failure {
    pub(crate) fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Neither | Self::Missing("nft") => Some("on Debian: apt-get install nftables"),
            Self::Missing(_) => Some("on Debian: apt-get install iptables"),
            Self::Refused { said, .. }
                if ["not permitted", "Permission denied", "you must be root"]
                    .iter()
                    .any(|sign| said.contains(sign)) =>
            {
                Some(
                    "it needs CAP_NET_ADMIN and CAP_NET_RAW: run it as root, or give its container these capabilities",
                )
            }
            Self::Refused { said, .. } if said.contains("not supported") => {
                Some("this kernel lacks what the rules need: try the other `--backend`")
            }
            Self::NotInForce | Self::Others => {
                Some("`merlon-intercept apply` with the same arguments puts them in force")
            }
            _ => None,
        }
    }

    /// Where the complaint is that something is not there, that.
    fn of_absence(self) -> Self {
        match self {
            Self::Refused { said, .. } if is_absence(&said) => Self::NotInForce,
            other => other,
        }
    }

    pub(crate) fn code(&self) -> u8 {
        1
    }
}

impl Backend {
    /// What this node has. Without a try when nothing is to be changed.
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

    /// What would be written.
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
                    if is_without(restored, family)? {
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
                    // Says by name when it may not; what then is not there needs not be removed.
                    if is_without(run(tool, &["-w", "-t", "nat", "-S"], ""), family)? {
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

    /// By whichever programs there are.
    pub(crate) fn remove_all() -> Result<(), Failure> {
        let (nftables, iptables) = (Self::Nftables.remove(), Self::Iptables.remove());
        match (nftables, iptables) {
            (Err(Failure::Missing(_)), Err(Failure::Missing(_))) => Err(Failure::Neither),
            (Err(Failure::Missing(_)), other) | (other, Err(Failure::Missing(_))) => other,
            (Err(why), _) | (_, Err(why)) => Err(why),
            (Ok(()), Ok(())) => Ok(()),
        }
    }

    /// Whether all of these rules are there, each by its mark, and nothing else in their chains.
    pub(crate) fn check(self, rules: &Rules) -> Result<(), Failure> {
        match self {
            Self::Nftables => {
                let listed = run("nft", &["list", "table", "inet", TABLE], "");
                let listed = listed.map_err(Failure::of_absence)?;
                whole(&listed, &rules.mark(), rules.nft_count())
            }
            Self::Iptables => {
                for family in Family::ALL {
                    let tool = Programs::of(family).tool;
                    if is_without(run(tool, &["-w", "-t", "nat", "-S"], ""), family)? {
                        continue;
                    }
                    let mut listed = String::new();
                    for [chain, ours] in JUMPS {
                        run(tool, &jump("-C", chain, ours), "").map_err(Failure::of_absence)?;
                        let rules = run(tool, &["-w", "-t", "nat", "-S", ours], "");
                        listed.push_str(&rules.map_err(Failure::of_absence)?);
                    }
                    whole(&listed, &rules.mark(), rules.iptables_count(family))?;
                }
                Ok(())
            }
        }
    }
}

fn whole(listed: &str, mark: &str, count: usize) -> Result<(), Failure> {
    match listed.matches(mark).count() {
        found if found == count => Ok(()),
        0 if !listed.contains("merlon-") => Err(Failure::NotInForce),
        _ => Err(Failure::Others),
    }
}

/// Whether a host has no addresses of a family, and so needs no rules for them.
fn is_without(ran: Result<String, Failure>, family: Family) -> Result<bool, Failure> {
    match ran {
        Err(Failure::Refused { said, .. })
            if family == Family::V6 && said.contains("Address family") =>
        {
            Ok(true)
        }
        other => other.map(|_| false),
    }
}

/// Whether a program complains that something is not there.
fn is_absence(said: &str) -> bool {
    [
        "No such file",
        "does not exist",
        "No chain/target/match",
        "Bad rule",
        "incompatible",
    ]
    .iter()
    .any(|sign| said.contains(sign))
}

/// The kernel's own chains, and ours that they lead into.
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

/// Runs a program with a text as its input; gives what it wrote.
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
            // It ended without reading, and says why below.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            other => other.map_err(failed)?,
        }
    }
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Failure::Refused {
        program,
        said: said.trim().to_owned(),
    })
}
