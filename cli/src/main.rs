//! `merlon`: what people type.
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
Begin with:
  merlon demo                      a mesh on this machine, shown at work
  merlon check                     is the installation in this Kubernetes cluster well?
  merlon policy check DIR          is anything wrong with these resource files?
  merlon proxy status              who is connected, with which state
  merlon explain DECISION-ID       why was that refused?"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::DemoArgs),
    /// Connected proxies.
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
    /// Join tokens.
    Token {
        #[command(flatten)]
        control_plane: Administration,
        #[command(subcommand)]
        command: token::TokenCommand,
    },
    /// Certificates of running proxies.
    Certs {
        #[command(flatten)]
        control_plane: Administration,
        #[command(subcommand)]
        command: certs::CertsCommand,
    },
    /// Policies and other resources, as files.
    #[command(subcommand)]
    Policy(PolicyCommand),
    Check(installation::CheckArgs),
    Inject(inject::InjectArgs),
    Crds(crds::CrdsArgs),
    #[command(hide = true)]
    Tunnel(tunnel::TunnelArgs),
    /// Prints the version.
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

/// Where the control plane can be asked.
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
    /// Ask the control plane in the Kubernetes cluster that the kubeconfig names, by `exec` in its pods.
    #[arg(
        long,
        short = 'k',
        global = true,
        conflicts_with = "control_plane_socket"
    )]
    kubernetes: bool,
    #[command(flatten)]
    place: cluster::Place,
}

/// As the control plane's own default.
const DEFAULT_SOCKET: &str = "merlon-state/admin.sock";

impl Administration {
    async fn control_plane(&self) -> Result<ControlPlane, Failure> {
        if self.kubernetes {
            return Ok(ControlPlane::in_cluster(
                Cluster::connect(&self.place).await?,
            ));
        }
        Ok(ControlPlane::at(self.control_plane_socket.clone()))
    }
}

fn main() -> ExitCode {
    // Ends with 2 by itself when the arguments are wrong, and with 0 for `--help`.
    let arguments = Arguments::parse();
    // One thread: the demo's children are bound to the thread that started them.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let ended = match runtime {
        Ok(runtime) => runtime.block_on(run(arguments.command)),
        Err(error) => Err(Failure::runtime(format!("no runtime: {error}"))),
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
