//! The guard's output and the violation that it finds do not depend on how the bytes are split.
#![no_main]

use libfuzzer_sys::fuzz_target;
use merlon_proxy::protocol::http1::{GuardedStream, Violation};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

fuzz_target!(|input: (u8, &[u8])| {
    let (size, bytes) = input;
    let whole = guarded(bytes, bytes.len().max(1));
    let pieces = guarded(bytes, usize::from(size).max(1));
    assert_eq!(whole.1, pieces.1);
    if whole.1.is_none() {
        assert_eq!(whole.0, pieces.0);
    }
});

/// Reads through a pipe that holds `size` bytes at a time. Each request gets a response without a protocol switch as
/// soon as it is read.
fn guarded(bytes: &[u8], size: usize) -> (Vec<u8>, Option<Violation>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(async {
        let (mut client, server) = duplex(size);
        let (mut strict, guard) = GuardedStream::new(server, Vec::new());
        let write = async {
            let _ = client.write_all(bytes).await;
            let _ = client.shutdown().await;
            std::future::pending::<()>().await;
        };
        let read = async {
            let (mut out, mut space) = (Vec::new(), vec![0; 1 << 16]);
            loop {
                match strict.read(&mut space).await {
                    Ok(0) | Err(_) => return out,
                    Ok(read) => out.extend_from_slice(space.get(..read).unwrap_or_default()),
                }
                guard.answered(guard.heads(), false);
                if guard.broken().is_some() {
                    return out;
                }
            }
        };
        tokio::select! {
            () = write => (Vec::new(), None),
            out = read => (out, guard.broken()),
        }
    })
}
