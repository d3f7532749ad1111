//! `merlon demo`: a mesh on this machine, for a first look and as the product's own proof.

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
use serde_json::{Map, Value};

use crate::{failure::Failure, output::Output};
use children::Children;
use folder::Folder;
use mesh::Mesh;
use report::{Outcome, Report};
use sabotage::Sabotage;
use vault::Vault;

/// Runs a whole mesh on this machine and shows it at work.
#[derive(Debug, Args)]
#[command(after_help = "\
It starts a control plane, three small services each with its sidecar, and a token issuer, all on loopback; sends real
requests and says what became of each; then stays up for you to try, until Ctrl-C.

Examples:
  merlon demo
  merlon demo --once --output json | jq '.steps[] | {name, ok, observed}'
  VAULT_ADDR=http://127.0.0.1:8200 VAULT_TOKEN=… merlon demo --vault
  merlon demo --keep /tmp/my-mesh

Exit codes: 0 every step did what it must, 1 some step did not (named on standard error), 2 it could not begin.")]
pub(crate) struct DemoArgs {
    /// Ends after the last step instead of staying up.
    #[arg(long)]
    once: bool,
    /// How the result is written; as JSON it comes at the end.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
    /// Certificates from OpenBao or Vault: the one at VAULT_ADDR, or else the `bao` program, started in its
    /// development mode.
    #[arg(long)]
    vault: bool,
    /// Keeps everything (resource files, logs, state) in this folder, which must be empty or not there yet.
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Makes one step fail by really making something wrong, and ends after it; for tests.
    #[arg(long, value_enum, hide = true)]
    sabotage: Option<Sabotage>,
}

pub(crate) async fn run(args: &DemoArgs) -> Result<(), Failure> {
    let mut report = Report::begin(args.output);
    let folder = Folder::make(args.keep.as_deref())?;
    let path = folder.path().to_owned();
    for name in ["logs", "addresses"] {
        folder::private_folder(&path.join(name))?;
    }
    let mut children = Children::new(path.join("logs"), path.join("addresses"))?;
    // Before anything runs: what is missing is said at once.
    children.sibling("merlon-control-plane")?;
    children.sibling("merlon-proxy")?;
    report.say(&format!(
        "Everything is in {} while it runs: resource files, logs, state.",
        path.display()
    ));

    let (staying, mut vault) = (Cell::new(false), None);
    let told = tokio::select! {
        told = tell(args, &path, &mut children, &mut report, &mut vault, &staying) => told,
        () = signals::told_to_end() => match staying.get() {
            true => Ok(()),
            false => Err(Failure::runtime("ended before the last step")),
        },
    };
    if staying.get() {
        report.say("\nStopping.");
    }
    children.stop().await;
    let cleaned = match &vault {
        Some(vault) => vault.clean_up().await,
        None => Ok(()),
    };
    let removed = folder.remove();
    told.and(cleaned).and(removed)
}

/// Starts everything, tells the story, and stays up when that is wanted.
async fn tell(
    args: &DemoArgs,
    folder: &Path,
    children: &mut Children,
    report: &mut Report,
    vault: &mut Option<Vault>,
    staying: &Cell<bool>,
) -> Result<(), Failure> {
    let began = Instant::now();
    let started = async {
        if args.vault {
            *vault = Some(Vault::prepare(folder, children).await?);
        }
        Mesh::start(folder, vault.as_ref(), args.sabotage, children).await
    };
    let mut outcome =
        Outcome::expecting("every process is up, every sidecar has a certificate and its state");
    let mut mesh = match started.await {
        Ok(started) => started,
        Err(failure) => {
            outcome.observed("not everything is up");
            outcome.problem(failure.message());
            if let Some(hint) = failure.mending() {
                outcome.problem(format!("to mend it: {hint}"));
            }
            report.step("start", START, outcome, began.elapsed());
            report.finish(&Map::new());
            return Err(verdict(report));
        }
    };
    describe(&mut outcome, &mesh, vault.as_ref()).await;
    report.step("start", START, outcome, began.elapsed());
    story::tell(&mut mesh, report, args.sabotage).await;
    let mut about = mesh.about();
    let issuer = vault.as_ref().map_or("embedded", Vault::kind);
    about.insert("certificate_issuer".to_owned(), Value::from(issuer));
    // From here on an end that is asked for is a good one: the report tells everything.
    staying.set(report.is_ok() && !args.once);
    report.finish(&about);
    if !report.is_ok() {
        return Err(verdict(report));
    }
    if args.once {
        return Ok(());
    }
    invite(&mesh, report).await?;
    supervisor::stay(mesh.children, report).await
}

const START: &str = "A control plane, a token issuer, and three services with a sidecar each";

fn verdict(report: &Report) -> Failure {
    Failure::runtime(format!(
        "the demo did not do what it must: {}",
        report.failed().join(", ")
    ))
    .hint("run it with `--keep DIR` and look into DIR/logs")
}

async fn describe(outcome: &mut Outcome, mesh: &Mesh<'_>, vault: Option<&Vault>) {
    let signer = vault.map_or_else(
        || "the embedded CA, which is for development".to_owned(),
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

/// What to try, with a token that the user need not type.
async fn invite(mesh: &Mesh<'_>, report: &Report) -> Result<(), Failure> {
    let file = mesh.folder.join("token");
    let token = mesh.token("alice", "orders", 8 * 3_600).await?;
    server::write_whole(&file, &token)?;
    let (web, socket) = (mesh.web.outbound, mesh.control_plane.socket().display());
    let lines = [
        String::new(),
        "Everything stays up now. To try in another terminal:".to_owned(),
        String::new(),
        format!("  export TOKEN=$(cat {})", file.display()),
        format!("  export MERLON_CONTROL_PLANE_SOCKET={socket}"),
        String::new(),
        "  # as web's program, through its sidecar".to_owned(),
        format!("  curl -si -H \"authorization: Bearer $TOKEN\" -H 'host: orders.shop' http://{web}/orders/7"),
        format!("  curl -si -H 'host: orders.shop' http://{web}/orders/7                 # 401"),
        format!("  curl -si -H \"authorization: Bearer $TOKEN\" -H 'host: orders.shop' http://{web}/orders \\"),
        "       -H 'content-type: application/json' -d '{\"item\": \"battlement\", \"quantity\": \"many\"}'   # 400".to_owned(),
        format!("  curl -si -X POST -H 'host: payments.payments' http://{web}/charges         # 403: copy its decision_id"),
        String::new(),
        "  merlon explain <decision_id>".to_owned(),
        "  merlon proxy status".to_owned(),
        format!("  merlon policy check {}", mesh.resources.folder().display()),
        String::new(),
        "  # another user's token, good for a minute".to_owned(),
        format!("  curl -s -d 'sub=bob&audience=orders&expires_in=60' http://{}/token", mesh.issuer),
        "  # numbers: of orders' sidecar, of the control plane".to_owned(),
        format!("  curl -s http://{}/metrics", mesh.orders.admin),
        format!("  curl -s http://{}/metrics", mesh.control_plane_admin),
        String::new(),
        "  # nothing fails while the control plane is away; ten seconds later it is started again, as is all that you kill".to_owned(),
        format!("  kill -9 {}", mesh.children.pid("control-plane").unwrap_or_default()),
        String::new(),
        format!("Edit the files in {}: what you save is live a moment later.", mesh.resources.folder().display()),
        format!("Logs are in {}. Ctrl-C ends all of it.", mesh.folder.join("logs").display()),
    ];
    lines.iter().for_each(|line| report.say(line));
    Ok(())
}
