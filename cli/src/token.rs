//! `merlon token`: join tokens, with which proxies get their first certificate.

use clap::{Args, Subcommand};
use merlon_config::{name::WorkloadId, unit::HumanDuration};
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

/// Create a join token. One proxy can use it once to get its first certificate, for one identity.
#[derive(Debug, Args)]
#[command(after_help = "\
Only the token goes to standard output. Write it to a file that only the proxy's user can read:

  (umask 077; merlon token create --identity shop/orders > orders.token)
  merlon-proxy --identity shop/orders --join-token-file orders.token --control-plane https://127.0.0.1:7564

Exit codes: 0 success, 1 the control plane refused or cannot be reached.")]
pub(crate) struct CreateArgs {
    /// The identity of the proxy, as `namespace/service-account`.
    #[arg(long)]
    identity: WorkloadId,
    /// Lifetime of the token, such as `10m` [default: set by the control plane].
    #[arg(long)]
    ttl: Option<HumanDuration>,
    /// Output format.
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
                    "valid for one proxy of {} until {end}",
                    args.identity
                ));
            }
        }
    }
    Ok(())
}
