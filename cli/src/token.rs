//! `merlon token`: join tokens, by which a proxy gets its first certificate.

use clap::{Args, Subcommand};
use merlon_config::{name::WorkloadId, unit::Span};
use serde_json::json;

use crate::{
    control_plane::ControlPlane,
    failure::Failure,
    output::{Output, eprint_line, print_json, print_line},
};

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    Create(CreateArgs),
}

/// Makes a join token: with it one proxy gets its first certificate for one identity, once.
#[derive(Debug, Args)]
#[command(after_help = "\
The token alone goes to standard output, so that it can be written where only the proxy's user can read it:

  (umask 077; merlon token create --identity shop/orders > orders.token)
  merlon-proxy --identity shop/orders --join-token-file orders.token --control-plane https://127.0.0.1:7564

Exit codes: 0 made, 1 the control plane refused it or cannot be asked.")]
pub(crate) struct CreateArgs {
    /// Whom the proxy will speak for, as `namespace/service-account`.
    #[arg(long)]
    identity: WorkloadId,
    /// How long the token may wait to be used, as `10m`; left out: the control plane's default.
    #[arg(long)]
    ttl: Option<Span>,
    /// How the result is written.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

pub(crate) async fn run(
    command: &TokenCommand,
    control_plane: &ControlPlane,
) -> Result<(), Failure> {
    let TokenCommand::Create(args) = command;
    let ttl = args.ttl.map(|ttl| ttl.to_string());
    let made = control_plane
        .join_token(&args.identity.to_string(), ttl.as_deref())
        .await?;
    match args.output {
        Output::Json => print_json(&json!({
            "identity": args.identity, "token": made.token, "expiresAt": made.expires_at,
        })),
        Output::Text => {
            print_line(&made.token);
            if let Some(end) = made.expires_at {
                eprint_line(&format!(
                    "good for one proxy of {} until {end}",
                    args.identity
                ));
            }
        }
    }
    Ok(())
}
