//! `merlon-proxy`: arguments and exit codes. Everything else is in the library.

mod allocator;

use std::{path::Path, process::ExitCode};

use clap::Parser;
use merlon_proxy::{
    app::{self, Addresses, StartError},
    flags::Flags,
    telemetry::access_log::AccessLog,
};
use tokio::{
    runtime::Runtime,
    signal::unix::{Signal, SignalKind, signal},
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The configuration is invalid; nothing was started.
const CONFIGURATION: u8 = 2;
/// Any other failure.
const FAILED: u8 = 1;

fn main() -> ExitCode {
    allocator::purge_at_once();
    let flags = Flags::parse();
    merlon_net::process_log::to_stderr("info");
    // Before anything is served: by default a signal ends the process without a drain.
    let (runtime, mut terminate, mut interrupt) = match signals() {
        Ok(signals) => signals,
        Err(error) => {
            tracing::error!(%error, "proxy.failed");
            return ExitCode::from(FAILED);
        }
    };
    let addresses_file = flags.addresses_file.clone();
    let started = flags
        .into_config()
        .map_err(StartError::Configuration)
        .and_then(app::start);
    let mut handle = match started {
        Ok(handle) => handle,
        Err(StartError::Configuration(report)) => {
            eprintln!("{report}");
            return ExitCode::from(CONFIGURATION);
        }
        Err(error) => {
            tracing::error!(
                error = format!("{:#}", anyhow::Error::from(error)),
                "proxy.failed"
            );
            return ExitCode::from(FAILED);
        }
    };
    if let Some(file) = addresses_file
        && let Err(error) = write_addresses(&file, handle.addresses())
    {
        tracing::error!(file = %file.display(), %error, "addresses_file.not_written");
        return ExitCode::from(FAILED);
    }
    let ended = runtime.block_on(async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            // A thread ended unexpectedly.
            ended = handle.ended() => return ended,
        }
        handle.drain();
        tokio::select! {
            ended = handle.ended() => ended,
            // A second signal ends the drain.
            _ = interrupt.recv() => Ok(()),
            _ = terminate.recv() => Ok(()),
        }
    });
    AccessLog::wait_until_stdout_is_written(handle.shared().limits.access_log_exit);
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "proxy.failed");
            ExitCode::from(FAILED)
        }
    }
}

/// SIGTERM and SIGINT, and the runtime that receives them.
fn signals() -> std::io::Result<(Runtime, Signal, Signal)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let entered = runtime.enter();
    let terminate = signal(SignalKind::terminate())?;
    let interrupt = signal(SignalKind::interrupt())?;
    drop(entered);
    Ok((runtime, terminate, interrupt))
}

/// Writes atomically, so that a process that waits for the file never reads a part of it.
fn write_addresses(file: &Path, addresses: Addresses) -> std::io::Result<()> {
    let text = serde_json::json!({
        "inbound": addresses.inbound,
        "outbound": addresses.outbound,
        "admin": addresses.admin,
        "probes": addresses.probes,
    });
    let temporary = file.with_extension("unfinished");
    std::fs::write(&temporary, text.to_string())?;
    std::fs::rename(&temporary, file)
}
