//! `merlon certs`: certificates of running proxies.

use clap::{Args, Subcommand};

use crate::{
    control_plane::ControlPlane,
    failure::Failure,
    output::{Output, print_json, print_line, printable},
    proxy,
};

#[derive(Debug, Subcommand)]
pub(crate) enum CertsCommand {
    Rotate(RotateArgs),
}

/// Make a proxy renew its certificate with a new key now, instead of at half of its lifetime.
#[derive(Debug, Args)]
#[command(after_help = "\
Open connections stay open; new handshakes use the new certificate.

Example:
  merlon certs rotate shop/orders

Exit codes: 0 the new certificate is in use, 1 the renewal failed and the old certificate stays in use.")]
pub(crate) struct RotateArgs {
    /// The proxy's id from `merlon proxy status`, a prefix of it, or its workload, such as `shop/orders`.
    id: String,
    /// Output format.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

pub(crate) async fn run(
    command: &CertsCommand,
    control_plane: &ControlPlane,
) -> Result<(), Failure> {
    let CertsCommand::Rotate(args) = command;
    let id = proxy::find(control_plane, &args.id).await?;
    let rotated = control_plane.rotate(&id).await?;
    match args.output {
        Output::Json => print_json(&rotated),
        Output::Text => {
            print_line(&format!("old serial {}", printable(&rotated.old_serial)));
            print_line(&format!("new serial {}", printable(&rotated.new_serial)));
        }
    }
    Ok(())
}
