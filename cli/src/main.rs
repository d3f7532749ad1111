//! `merlon`: the command line.
#![doc = include_str!("../README.md")]

mod certs;
mod check;
mod cluster;
mod control_plane;
mod crds;
mod demo;
mod egress;
mod explain;
mod failure;
mod inject;
mod installation;
mod output;
mod proxy;
mod token;
mod tunnel;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

use cluster::Cluster;
use control_plane::ControlPlane;
use failure::Failure;

/// Merlon: a zero-trust security gateway and service mesh.
#[derive(Debug, Parser)]
#[command(
    name = "merlon",
    version,
    after_help = "\
Start with:
  merlon demo                      run a mesh on this machine and show it at work
  merlon check                     check the installation in a Kubernetes cluster
  merlon policy check DIR          validate resource files
  merlon proxy status              list connected proxies and their state
  merlon explain DECISION-ID       explain why a request was refused"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::DemoArgs),
    /// Inspect connected proxies.
    Proxy {
        #[command(flatten)]
        control_plane: Administration,
        #[command(subcommand)]
        command: proxy::ProxyCommand,
    },
    Egress {
        #[command(flatten)]
        control_plane: Administration,
        #[command(flatten)]
        args: egress::EgressArgs,
    },
    Explain {
        #[command(flatten)]
        control_plane: Administration,
        #[command(flatten)]
        args: explain::ExplainArgs,
    },
    /// Create join tokens.
    Token {
        #[command(flatten)]
        control_plane: Administration,
        #[command(subcommand)]
        command: token::TokenCommand,
    },
    /// Rotate certificates of running proxies.
    Certs {
        #[command(flatten)]
        control_plane: Administration,
        #[command(subcommand)]
        command: certs::CertsCommand,
    },
    /// Check files of policies and other resources.
    #[command(subcommand)]
    Policy(PolicyCommand),
    Check(installation::CheckArgs),
    Inject(inject::InjectArgs),
    Crds(crds::CrdsArgs),
    #[command(hide = true)]
    Tunnel(tunnel::TunnelArgs),
    /// Print the version.
    Version,
    #[command(hide = true)]
    DemoService(demo::service::ServiceArgs),
    #[command(hide = true)]
    DemoIssuer(demo::issuer::IssuerArgs),
    #[command(hide = true)]
    DemoChild(demo::child::ChildArgs),
}

#[derive(Debug, Subcommand)]
enum PolicyCommand {
    Check(check::CheckArgs),
}

/// How to reach the control plane.
#[derive(Debug, Args)]
struct Administration {
    /// The control plane's administration socket.
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "MERLON_CONTROL_PLANE_SOCKET",
        default_value = DEFAULT_SOCKET
    )]
    control_plane_socket: PathBuf,
    /// Reach the control plane in the Kubernetes cluster of the kubeconfig, by `exec` in its pods.
    #[arg(
        long,
        short = 'k',
        global = true,
        conflicts_with = "control_plane_socket"
    )]
    kubernetes: bool,
    #[command(flatten)]
    cluster: cluster::ClusterArgs,
}

/// The default of the control plane.
const DEFAULT_SOCKET: &str = "merlon-state/admin.sock";

impl Administration {
    async fn control_plane(&self) -> Result<ControlPlane, Failure> {
        if self.kubernetes {
            return Ok(ControlPlane::in_cluster(
                Cluster::connect(&self.cluster).await?,
            ));
        }
        Ok(ControlPlane::at(self.control_plane_socket.clone()))
    }
}

fn main() -> ExitCode {
    // Exits with 2 if the arguments are wrong, and with 0 for `--help`.
    let arguments = Arguments::parse();
    // One thread: the kernel ends the demo's children with the thread that started them.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let ended = match runtime {
        Ok(runtime) => runtime.block_on(run(arguments.command)),
        Err(error) => Err(Failure::runtime(format!(
            "cannot start the async runtime: {error}"
        ))),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::eprint_line(&failure.to_string());
            failure.exit_code()
        }
    }
}

async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Demo(args) => demo::run(&args).await,
        Command::Proxy {
            control_plane,
            command,
        } => proxy::run(&command, &control_plane.control_plane().await?).await,
        Command::Egress {
            control_plane,
            args,
        } => egress::run(&args, &control_plane.control_plane().await?).await,
        Command::Explain {
            control_plane,
            args,
        } => explain::run(&args, &control_plane.control_plane().await?).await,
        Command::Token {
            control_plane,
            command,
        } => token::run(&command, &control_plane.control_plane().await?).await,
        Command::Certs {
            control_plane,
            command,
        } => certs::run(&command, &control_plane.control_plane().await?).await,
        Command::Policy(PolicyCommand::Check(args)) => check::run(&args),
        Command::Check(args) => installation::run(&args).await,
        Command::Inject(args) => inject::run(&args),
        Command::Tunnel(args) => tunnel::run(&args),
        Command::Crds(args) => crds::run(&args),
        Command::Version => {
            output::print_line(&format!("merlon {}", env!("CARGO_PKG_VERSION")));
            Ok(())
        }
        Command::DemoService(args) => demo::service::run(&args).await,
        Command::DemoIssuer(args) => demo::issuer::run(&args).await,
        Command::DemoChild(args) => Err(demo::child::become_program(&args)),
    }
}
