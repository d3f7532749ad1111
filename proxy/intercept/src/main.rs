//! `merlon-intercept` installs the rules that redirect a pod's connections to its proxy.
#![doc = include_str!("../README.md")]

mod backend;
mod ports;
mod rules;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;

use crate::{
    backend::{Backend, Failure},
    ports::Ports,
    rules::Rules,
};

/// Redirects every TCP connection of this network namespace to Merlon's proxy.
#[derive(Debug, Parser)]
#[command(name = "merlon-intercept", version, max_term_width = 100)]
#[command(after_help = "\
Examples:
  merlon-intercept apply
  merlon-intercept apply --exclude-outbound-ports 5432,9000-9010 --dry-run
  merlon-intercept remove

It needs CAP_NET_ADMIN and CAP_NET_RAW, and `nft` or `iptables-restore` in PATH.
Exit codes: 0 success, 1 the rules could not be changed (or, for `check`, are not in force), 2 invalid arguments.")]
struct Flags {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Installs the rules and replaces those of an earlier run; with nftables in one transaction
    Apply(ApplyArgs),
    /// Removes the rules
    Remove(BackendArgs),
    /// Checks whether the rules that `apply` would install with these arguments are in force
    Check(ApplyArgs),
}

#[derive(Debug, Args)]
struct ApplyArgs {
    #[command(flatten)]
    backend: BackendArgs,
    /// User of the proxy, whose connections are not redirected
    #[arg(long, env = "MERLON_PROXY_UID", default_value_t = 7565)]
    proxy_uid: u32,
    /// Port of the proxy for outbound connections of the program
    #[arg(long, env = "MERLON_OUTBOUND_PORT", default_value_t = 7560, value_parser = clap::value_parser!(u16).range(1..))]
    outbound_port: u16,
    /// Port of the proxy for inbound connections to the program
    #[arg(long, env = "MERLON_INBOUND_PORT", default_value_t = 7561, value_parser = clap::value_parser!(u16).range(1..))]
    inbound_port: u16,
    /// Ports of the proxy that are reached directly: administration and probes
    #[arg(
        long,
        env = "MERLON_PROXY_PORTS",
        default_value = "7562,7563",
        value_name = "PORTS"
    )]
    proxy_ports: Ports,
    /// Ports of the program that clients reach without the proxy
    #[arg(
        long,
        env = "MERLON_EXCLUDE_INBOUND_PORTS",
        default_value = "",
        value_name = "PORTS"
    )]
    exclude_inbound_ports: Ports,
    /// Destination ports that the program reaches without the proxy
    #[arg(
        long,
        env = "MERLON_EXCLUDE_OUTBOUND_PORTS",
        default_value = "",
        value_name = "PORTS"
    )]
    exclude_outbound_ports: Ports,
    /// Networks that the program reaches without the proxy, for example 169.254.169.254/32
    #[arg(
        long,
        env = "MERLON_EXCLUDE_OUTBOUND_IP_RANGES",
        value_delimiter = ',',
        value_name = "NETWORKS"
    )]
    exclude_outbound_ip_ranges: Vec<IpNet>,
}

#[derive(Debug, Args)]
struct BackendArgs {
    /// Tools that install the rules
    #[arg(long, env = "MERLON_BACKEND", value_enum, default_value_t)]
    backend: Choice,
    /// Prints what would be done and changes nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Choice {
    /// nftables if `nft` exists and the kernel supports it, else iptables
    #[default]
    Auto,
    /// `nft`
    Nftables,
    /// `iptables-restore` and `ip6tables-restore`
    Iptables,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    match run(&flags.command) {
        Ok(message) => {
            print(&message);
            ExitCode::SUCCESS
        }
        Err(failure) => {
            use std::io::Write as _;
            // A failed write to standard error cannot be reported.
            let _ = writeln!(std::io::stderr(), "error: {failure}");
            if let Some(hint) = failure.hint() {
                let _ = writeln!(std::io::stderr(), "hint: {hint}");
            }
            ExitCode::from(failure.code())
        }
    }
}

fn run(command: &Command) -> Result<String, Failure> {
    match command {
        Command::Apply(args) => {
            let (backend, rules) = (args.backend.choose()?, args.rules());
            if args.backend.dry_run {
                return Ok(backend.script(&rules));
            }
            backend.apply(&rules)?;
            Ok(format!("rules in force ({backend}): {rules}\n"))
        }
        Command::Remove(args) => {
            if args.dry_run {
                return Ok(args.choose()?.removal());
            }
            // An earlier run may have used either backend.
            match args.backend {
                Choice::Auto => Backend::remove_all()?,
                _ => args.choose()?.remove()?,
            }
            Ok("removed\n".to_owned())
        }
        Command::Check(args) => {
            let (backend, rules) = (args.backend.choose()?, args.rules());
            backend.check(&rules)?;
            Ok(format!("rules in force ({backend}): {rules}\n"))
        }
    }
}

impl BackendArgs {
    fn choose(&self) -> Result<Backend, Failure> {
        match self.backend {
            Choice::Auto => Backend::find(self.dry_run),
            Choice::Nftables => Ok(Backend::Nftables),
            Choice::Iptables => Ok(Backend::Iptables),
        }
    }
}

impl ApplyArgs {
    fn rules(&self) -> Rules {
        Rules {
            proxy_uid: self.proxy_uid,
            outbound_port: self.outbound_port,
            inbound_port: self.inbound_port,
            proxy_ports: self.proxy_ports.clone(),
            exclude_inbound: self.exclude_inbound_ports.clone(),
            exclude_outbound: self.exclude_outbound_ports.clone(),
            exclude_networks: self.exclude_outbound_ip_ranges.clone(),
        }
    }
}

fn print(text: &str) {
    use std::io::Write as _;
    // A failed write to standard output is ignored: it does not affect the rules.
    let _ = std::io::stdout().write_all(text.as_bytes());
}
