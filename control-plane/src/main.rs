//! `merlon-control-plane`: arguments, runtime, exit codes.

use std::{io::Write as _, path::Path, process::ExitCode};

use anyhow::Context as _;
use clap::Parser as _;
use merlon_control_plane::{
    OpenError,
    app::{self, ControlPlane, StartError},
    flags::Flags,
    telemetry,
};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

fn main() -> ExitCode {
    // The program has one provider. A second one would fail here and not at run time.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let flags = Flags::parse();
    let config = match flags.resolve() {
        Ok(config) => config,
        Err(report) => return wrong_configuration(&report),
    };
    telemetry::log_to_stderr();
    merlon_net::allow_all_files();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let ended = runtime.context("no runtime").and_then(|runtime| {
        runtime.block_on(async {
            let shutdown = CancellationToken::new();
            end_on_signal(shutdown.clone(), Signals::new()?);
            let control_plane = match app::run_until(config, shutdown).await {
                Err(StartError::Cluster(OpenError::Ended)) => return Ok(()),
                started => started?,
            };
            if let Some(file) = &flags.addresses_file {
                let failed = || format!("{} cannot be written", file.display());
                write_addresses(file, &control_plane).with_context(failed)?;
            }
            Ok(control_plane.wait().await?)
        })
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => match error.downcast_ref() {
            Some(StartError::Configuration(report)) => wrong_configuration(report),
            Some(error @ StartError::Issuer(_)) => {
                let problem =
                    merlon_config::report::Problem::error("MeshConfig", error.to_string());
                wrong_configuration(&merlon_config::report::Report::from_iter([problem]))
            }
            _ => {
                tracing::error!(error = format!("{error:#}"), "control_plane.failed");
                ExitCode::FAILURE
            }
        },
    }
}

/// Prints every problem with its location to standard error.
fn wrong_configuration(report: &merlon_config::report::Report) -> ExitCode {
    let _ = writeln!(std::io::stderr().lock(), "{report}");
    ExitCode::from(2)
}

/// The signals that stop the process.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// The first signal starts the drain; a second one ends the process.
fn end_on_signal(shutdown: CancellationToken, mut signals: Signals) {
    tokio::spawn(async move {
        signals.next().await;
        shutdown.cancel();
        signals.next().await;
        std::process::exit(1);
    });
}

/// Writes the file atomically, because another process may wait for it.
fn write_addresses(file: &Path, control_plane: &ControlPlane) -> std::io::Result<()> {
    let addresses = serde_json::json!({
        "listen": control_plane.listen,
        "admin": control_plane.admin,
        "adminSocket": control_plane.admin_socket,
    });
    let unfinished = file.with_extension("unfinished");
    std::fs::write(&unfinished, addresses.to_string())?;
    std::fs::rename(&unfinished, file)
}
