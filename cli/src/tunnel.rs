//! `merlon tunnel`: the other end of `--kubernetes`, run in the control plane's own container.

use std::{
    io::{self, Write as _},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::PathBuf,
    thread,
};

use clap::Args;

use crate::failure::Failure;

/// Joins standard input and output with an administration socket.
#[derive(Debug, Args)]
pub(crate) struct TunnelArgs {
    /// The socket.
    #[arg(long)]
    socket: PathBuf,
}

pub(crate) fn run(args: &TunnelArgs) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::runtime(format!("{}: {error}", args.socket.display()));
    let mut answers = UnixStream::connect(&args.socket).map_err(failed)?;
    let mut questions = answers.try_clone().map_err(failed)?;
    // It may wait for input for ever; the process ends with the answers.
    thread::spawn(move || {
        let asked = io::copy(&mut io::stdin(), &mut questions);
        // Whatever ended it: nothing more is asked.
        let _ = asked.and_then(|_| questions.shutdown(Shutdown::Write));
    });
    let mut out = io::stdout();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let read = io::Read::read(&mut answers, &mut buffer).map_err(failed)?;
        let Some(part) = buffer.get(..read).filter(|part| !part.is_empty()) else {
            return Ok(());
        };
        out.write_all(part)
            .and_then(|()| out.flush())
            .map_err(failed)?;
    }
}
