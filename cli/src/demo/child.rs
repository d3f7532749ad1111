//! `merlon demo-child`: executes another program that the kernel ends with the demo.

use std::{ffi::OsString, os::unix::process::CommandExt as _, process::Command};

use clap::Args;

use crate::failure::Failure;

/// Execute `program`, after a request to the kernel to kill it when the demo ends for any reason.
#[derive(Debug, Args)]
pub(crate) struct ChildArgs {
    /// Process id of the demo.
    #[arg(long)]
    parent: u32,
    /// Program and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    program: Vec<OsString>,
}

/// Returns only on failure.
pub(crate) fn become_program(args: &ChildArgs) -> Failure {
    if let Err(failure) = end_with(args.parent) {
        return failure;
    }
    let Some((program, rest)) = args.program.split_first() else {
        return Failure::usage("no program given");
    };
    // The request survives `exec`, so the program needs no support for it.
    let error = Command::new(program).args(rest).exec();
    Failure::runtime(format!("cannot start `{}`: {error}", program.display()))
}

#[cfg(target_os = "linux")]
fn end_with(parent: u32) -> Result<(), Failure> {
    use rustix::process::{Signal, getppid, set_parent_process_death_signal};
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| Failure::runtime(format!("prctl: {error}")))?;
    // The parent may have exited before the call.
    let current = getppid().map(|pid| pid.as_raw_nonzero().get());
    if current.and_then(|pid| u32::try_from(pid).ok()) == Some(parent) {
        Ok(())
    } else {
        Err(Failure::runtime("the demo has exited"))
    }
}

#[cfg(not(target_os = "linux"))]
#[expect(clippy::unnecessary_wraps, reason = "the same shape as on Linux")]
fn end_with(_parent: u32) -> Result<(), Failure> {
    Ok(())
}
