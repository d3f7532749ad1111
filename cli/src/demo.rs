//! `merlon demo`: a mesh on this machine, as a first look and as an end-to-end test.

pub(crate) mod child;
mod children;
mod faults;
mod folder;
pub(crate) mod issuer;
mod mesh;
mod report;
mod resources;
mod sabotage;
mod server;
pub(crate) mod service;
mod signals;
mod story;
mod supervisor;
mod token;
mod trace;
mod vault;
mod wire;

use std::{
    cell::Cell,
    path::{Path, PathBuf},
    time::Instant,
};

use clap::Args;
use merlon_config::unit::HumanDuration;
use serde_json::{Map, Value};

use crate::{failure::Failure, output::Output};
use children::Children;
use folder::Folder;
use mesh::Mesh;
use report::{Outcome, Report};
use sabotage::Sabotage;
use vault::Vault;

/// Run a complete mesh on this machine and show it at work.
#[derive(Debug, Args)]
#[command(after_help = "\
It starts a control plane, three small services with a sidecar each, and a token issuer, all on loopback. It sends real
requests, reports the result of each, and then stays up for you to try until Ctrl-C.

Examples:
  merlon demo
  merlon demo --once --output json | jq '.steps[] | {name, ok, observed}'
  VAULT_ADDR=http://127.0.0.1:8200 VAULT_TOKEN=… merlon demo --vault
  merlon demo --keep /tmp/my-mesh

Exit codes: 0 every step passed, 1 a step failed (named on standard error), 2 the demo could not start.")]
pub(crate) struct DemoArgs {
    /// Exit after the last step instead of staying up.
    #[arg(long)]
    once: bool,
    /// Output format; JSON is written at the end.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
    /// Get certificates from OpenBao or Vault: the server at VAULT_ADDR, or else the `bao` program, started in
    /// development mode.
    #[arg(long)]
    vault: bool,
    /// Keep all files (resources, logs, state) in this folder, which must be empty or not exist.
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// How long a process that has exited stays away before it is restarted, while the demo stays up.
    #[arg(long, value_name = "DURATION", default_value = "10s")]
    restart_delay: HumanDuration,
    /// Inject a real fault into each of these steps, which makes it fail, and exit after the last of them; for tests.
    #[arg(long, value_enum, value_delimiter = ',', hide = true)]
    sabotage: Vec<Sabotage>,
}

pub(crate) async fn run(args: &DemoArgs) -> Result<(), Failure> {
    let mut report = Report::begin(args.output);
    let folder = Folder::create(args.keep.as_deref())?;
    let path = folder.path().to_owned();
    for name in ["logs", "addresses"] {
        folder::private_folder(&path.join(name))?;
    }
    let mut children = Children::new(path.join("logs"), path.join("addresses"))?;
    // Report missing programs before anything starts.
    children.sibling("merlon-control-plane")?;
    children.sibling("merlon-proxy")?;
    report.line(&format!(
        "Resource files, logs and state are in {} while the demo runs.",
        path.display()
    ));

    let (stays_up, mut vault) = (Cell::new(false), None);
    let ended = tokio::select! {
        ended = start_and_run(args, &path, &mut children, &mut report, &mut vault, &stays_up) => ended,
        () = signals::shutdown() => match stays_up.get() {
            true => Ok(()),
            false => Err(Failure::runtime("interrupted before the last step")),
        },
    };
    if stays_up.get() {
        report.line("\nStopping.");
    }
    children.stop().await;
    let cleaned = match &vault {
        Some(vault) => vault.clean_up().await,
        None => Ok(()),
    };
    let removed = folder.remove();
    ended.and(cleaned).and(removed)
}

/// Starts everything, runs the story, and stays up unless `--once` is set.
async fn start_and_run(
    args: &DemoArgs,
    folder: &Path,
    children: &mut Children,
    report: &mut Report,
    vault: &mut Option<Vault>,
    stays_up: &Cell<bool>,
) -> Result<(), Failure> {
    let began = Instant::now();
    let started = async {
        if args.vault {
            *vault = Some(Vault::prepare(folder, children).await?);
        }
        Mesh::start(folder, vault.as_ref(), &args.sabotage, children).await
    };
    let mut outcome =
        Outcome::expecting("every process runs, every sidecar has a certificate and its snapshot");
    let mut mesh = match started.await {
        Ok(started) => started,
        Err(failure) => {
            outcome.observed("not every process is up");
            outcome.problem(failure.message());
            if let Some(hint) = failure.hint_text() {
                outcome.problem(format!("to fix it: {hint}"));
            }
            report.step("start", START, outcome, began.elapsed());
            report.finish(&Map::new());
            return Err(failed(report));
        }
    };
    describe(&mut outcome, &mesh, vault.as_ref()).await;
    report.step("start", START, outcome, began.elapsed());
    story::run(&mut mesh, report, &args.sabotage).await;
    let mut about = mesh.about();
    let issuer = vault.as_ref().map_or("embedded", Vault::kind);
    about.insert("certificate_issuer".to_owned(), Value::from(issuer));
    // From here on, a signal ends a demo that succeeded.
    stays_up.set(report.is_ok() && !args.once);
    report.finish(&about);
    if !report.is_ok() {
        return Err(failed(report));
    }
    if args.once {
        return Ok(());
    }
    print_examples(&mesh, args.restart_delay, report).await?;
    supervisor::supervise(mesh.children, args.restart_delay.0, report).await
}

const START: &str = "A control plane, a token issuer, and three services with a sidecar each";

fn failed(report: &Report) -> Failure {
    Failure::runtime(format!("the demo failed: {}", report.failed().join(", ")))
        .hint("run it with `--keep DIR` and read the logs in DIR/logs")
}

async fn describe(outcome: &mut Outcome, mesh: &Mesh<'_>, vault: Option<&Vault>) {
    let signer = vault.map_or_else(
        || "the embedded CA (for development only)".to_owned(),
        Vault::describe,
    );
    outcome.observed(format!("{} processes are up", mesh.children.pids().len()));
    outcome.note(format!(
        "control plane {}, certificates signed by {signer}",
        mesh.control_plane_address
    ));
    outcome.note(format!("token issuer  http://{}", mesh.issuer));
    for workload in mesh.workloads() {
        outcome.note(format!(
            "{:<8} program {}, sidecar {} (out) {} (mesh), {}",
            workload.name,
            workload.program,
            workload.outbound,
            workload.inbound,
            workload.identity()
        ));
    }
    match mesh.proxies().await {
        Ok(proxies) => {
            let versions: Map<String, Value> = proxies
                .iter()
                .map(|proxy| {
                    (
                        proxy.identity.clone(),
                        proxy.snapshot_version.clone().into(),
                    )
                })
                .collect();
            outcome.fact("snapshots", versions);
        }
        Err(failure) => outcome.problem(failure.message()),
    }
}

/// Prints commands to try, with a token in a file.
async fn print_examples(
    mesh: &Mesh<'_>,
    restart_delay: HumanDuration,
    report: &Report,
) -> Result<(), Failure> {
    let file = mesh.folder.join("token");
    let token = mesh.token("alice", "orders", 8 * 3_600).await?;
    server::write_atomically(&file, &token)?;
    let (web, socket) = (mesh.web.outbound, mesh.control_plane.socket().display());
    let lines = [
        String::new(),
        "The mesh stays up. Try this in another terminal:".to_owned(),
        String::new(),
        format!("  export TOKEN=$(cat {})", file.display()),
        format!("  export MERLON_CONTROL_PLANE_SOCKET={socket}"),
        String::new(),
        "  # call as the program web, through its sidecar".to_owned(),
        format!("  curl -si -H \"authorization: Bearer $TOKEN\" -H 'host: orders.shop' http://{web}/orders/7"),
        format!("  curl -si -H 'host: orders.shop' http://{web}/orders/7                 # 401"),
        format!("  curl -si -H \"authorization: Bearer $TOKEN\" -H 'host: orders.shop' http://{web}/orders \\"),
        "       -H 'content-type: application/json' -d '{\"item\": \"battlement\", \"quantity\": \"many\"}'   # 400".to_owned(),
        format!("  curl -si -X POST -H 'host: payments.payments' http://{web}/charges         # 403: copy the decision_id"),
        String::new(),
        "  merlon explain <decision_id>".to_owned(),
        "  merlon proxy status".to_owned(),
        format!("  merlon policy check {}", mesh.resources.folder().display()),
        String::new(),
        "  # a token of another user, valid for a minute".to_owned(),
        format!("  curl -s -d 'sub=bob&audience=orders&expires_in=60' http://{}/token", mesh.issuer),
        "  # metrics of the orders sidecar and of the control plane".to_owned(),
        format!("  curl -s http://{}/metrics", mesh.orders.admin),
        format!("  curl -s http://{}/metrics", mesh.control_plane_admin),
        String::new(),
        format!("  # no call fails while the control plane is down; every process that you kill is restarted after {restart_delay}"),
        format!("  kill -9 {}", mesh.children.pid("control-plane").unwrap_or_default()),
        String::new(),
        format!("Edit the files in {}: changes take effect when you save them.", mesh.resources.folder().display()),
        format!("Logs are in {}. Press Ctrl-C to stop.", mesh.folder.join("logs").display()),
    ];
    lines.iter().for_each(|line| report.line(line));
    Ok(())
}
