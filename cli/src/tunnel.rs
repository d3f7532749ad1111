//! `merlon tunnel`: the remote end of `--kubernetes`, run in the control plane's container.

use std::{
    io::{self, Write as _},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::PathBuf,
    thread,
};

use clap::Args;

use crate::failure::Failure;

/// Connect standard input and output to an administration socket.
#[derive(Debug, Args)]
pub(crate) struct TunnelArgs {
    /// Path of the socket.
    #[arg(long)]
    socket: PathBuf,
}

pub(crate) fn run(args: &TunnelArgs) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::runtime(format!("{}: {error}", args.socket.display()));
    let mut responses = UnixStream::connect(&args.socket).map_err(failed)?;
    let mut requests = responses.try_clone().map_err(failed)?;
    // This thread may block on input without end; the process exits when the responses end.
    thread::spawn(move || {
        let copied = io::copy(&mut io::stdin(), &mut requests);
        let _ = copied.and_then(|_| requests.shutdown(Shutdown::Write));
    });
    let mut out = io::stdout();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let read = io::Read::read(&mut responses, &mut buffer).map_err(failed)?;
        let Some(part) = buffer.get(..read).filter(|part| !part.is_empty()) else {
            return Ok(());
        };
        out.write_all(part)
            .and_then(|()| out.flush())
            .map_err(failed)?;
    }
}
