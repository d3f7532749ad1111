//! `merlon proxy`: the connected proxies with their state, and the configuration of one proxy.

use clap::{Args, Subcommand};
use jiff::Timestamp;
use merlon_config::clock;

use crate::{
    control_plane::{ControlPlane, ProxyStatus},
    failure::Failure,
    output::{Output, print_json, print_line, printable, span},
};

#[derive(Debug, Subcommand)]
pub(crate) enum ProxyCommand {
    Status(StatusArgs),
    Config(ConfigArgs),
}

/// List every connected proxy: its identity, the snapshot it enforces, and whether it accepted the latest one.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  merlon proxy status
  merlon proxy status --output json | jq '.[] | select(.state == \"refused\") | .reason'

Exit codes: 0 success, 1 the control plane cannot be reached.")]
pub(crate) struct StatusArgs {
    /// Output format.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// Print the whole configuration of one proxy as JSON, without secrets.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  merlon proxy config shop/orders | jq .services

Exit codes: 0 success, 1 no such proxy is connected, or the control plane cannot be reached.")]
pub(crate) struct ConfigArgs {
    /// The proxy's id from `merlon proxy status`, a prefix of it, or its workload, such as `shop/orders`.
    id: String,
}

pub(crate) async fn run(
    command: &ProxyCommand,
    control_plane: &ControlPlane,
) -> Result<(), Failure> {
    match command {
        ProxyCommand::Status(args) => {
            let mut proxies = control_plane.proxies().await?;
            proxies.sort_by(|a, b| (&a.identity, &a.id).cmp(&(&b.identity, &b.id)));
            match args.output {
                Output::Json => print_json(&proxies),
                Output::Text if proxies.is_empty() => print_line("no proxy is connected"),
                Output::Text => print_line(&table(&proxies, clock::now())),
            }
        }
        ProxyCommand::Config(args) => {
            let id = find(control_plane, &args.id).await?;
            print_json(&control_plane.proxy_config(&id).await?);
        }
    }
    Ok(())
}

/// The proxy whose id equals or starts with `text`, or the only proxy of the workload `text`.
pub(crate) async fn find(control_plane: &ControlPlane, text: &str) -> Result<String, Failure> {
    let proxies = control_plane.proxies().await?;
    if proxies.iter().any(|proxy| proxy.id == text) {
        return Ok(text.to_owned());
    }
    let named = |proxy: &&ProxyStatus| {
        proxy.id.starts_with(text) || proxy.workload.as_deref() == Some(text)
    };
    // Connected proxies first.
    let mut found: Vec<_> = proxies.iter().filter(named).collect();
    found.sort_by_key(|proxy| proxy.state == "disconnected");
    let text = printable(text);
    match found.as_slice() {
        [] => Err(Failure::runtime(format!(
            "no proxy with id or workload `{text}` is connected"
        ))
        .hint("`merlon proxy status` lists the connected proxies")),
        [one, other, ..] if other.state != "disconnected" => Err(Failure::usage(format!(
            "`{text}` matches several proxies, such as `{}` and `{}`",
            printable(&one.id),
            printable(&other.id)
        ))),
        [one, ..] => Ok(one.id.clone()),
    }
}

fn table(proxies: &[ProxyStatus], now: Timestamp) -> String {
    let header = [
        "IDENTITY",
        "PROXY",
        "STATE",
        "SNAPSHOT",
        "AGE",
        "CERTIFICATE",
        "READY",
    ];
    let rows = proxies.iter().map(|proxy| {
        [
            printable(&proxy.identity),
            printable(&proxy.id),
            state(proxy, now),
            proxy.snapshot_version.as_deref().map_or_else(none, short),
            proxy.snapshot_age_seconds.map_or_else(none, span),
            proxy
                .certificate_not_after
                .map_or_else(none, |end| expiry(end, now)),
            ready(proxy),
        ]
    });
    aligned(
        &std::iter::once(header.map(str::to_owned))
            .chain(rows)
            .collect::<Vec<_>>(),
    )
}

/// Columns as wide as their widest cell. Lines are never wrapped, for logs and pipes.
pub(crate) fn aligned<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let line = |row: &[String; N]| {
        let cells = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn state(proxy: &ProxyStatus, now: Timestamp) -> String {
    if let (true, Some(seen)) = (proxy.state == "disconnected", proxy.last_seen) {
        let ago = now.as_second().saturating_sub(seen.as_second());
        return format!("disconnected {} ago", span(u64::try_from(ago).unwrap_or(0)));
    }
    match &proxy.reason {
        Some(reason) if !reason.is_empty() => printable(&format!("{}: {reason}", proxy.state)),
        _ => printable(&proxy.state),
    }
}

fn ready(proxy: &ProxyStatus) -> String {
    match &proxy.not_ready_reason {
        _ if proxy.ready => "yes".to_owned(),
        Some(reason) if !reason.is_empty() => printable(&format!("no: {reason}")),
        _ => "no".to_owned(),
    }
}

fn expiry(end: Timestamp, now: Timestamp) -> String {
    let left = end.as_second().saturating_sub(now.as_second());
    match u64::try_from(left) {
        Ok(0) | Err(_) => "expired".to_owned(),
        Ok(left) => format!("{} left", span(left)),
    }
}

fn short(version: &str) -> String {
    printable(version.get(..12).unwrap_or(version))
}

fn none() -> String {
    "-".to_owned()
}
