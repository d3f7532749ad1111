//! `merlon demo-child`: becomes another program that dies with the demo.

use std::{ffi::OsString, os::unix::process::CommandExt as _, process::Command};

use clap::Args;

use crate::failure::Failure;

/// Becomes `program`, after asking the kernel to end it when the demo ends, however that ends.
#[derive(Debug, Args)]
pub(crate) struct ChildArgs {
    /// The process that must live.
    #[arg(long)]
    parent: u32,
    /// The program and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    program: Vec<OsString>,
}

/// Returns only when it could not.
pub(crate) fn become_program(args: &ChildArgs) -> Failure {
    if let Err(failure) = die_with(args.parent) {
        return failure;
    }
    let Some((program, rest)) = args.program.split_first() else {
        return Failure::usage("no program was named");
    };
    // The wish survives `exec`, so the program needs to know nothing of it.
    let error = Command::new(program).args(rest).exec();
    Failure::runtime(format!(
        "`{}` cannot be started: {error}",
        program.display()
    ))
}

#[cfg(target_os = "linux")]
fn die_with(parent: u32) -> Result<(), Failure> {
    use rustix::process::{Signal, getppid, set_parent_process_death_signal};
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| Failure::runtime(format!("prctl: {error}")))?;
    // The parent may have died before the wish was made.
    let current = getppid().map(|pid| pid.as_raw_nonzero().get());
    if current.and_then(|pid| u32::try_from(pid).ok()) == Some(parent) {
        Ok(())
    } else {
        Err(Failure::runtime("the demo is gone"))
    }
}

#[cfg(not(target_os = "linux"))]
#[expect(clippy::unnecessary_wraps, reason = "the same shape as on Linux")]
fn die_with(_parent: u32) -> Result<(), Failure> {
    Ok(())
}
