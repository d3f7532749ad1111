//! Copies bytes in both directions between two connections.

use std::{
    future::poll_fn,
    io,
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::revocation::Revocation;

/// The number of bytes in each direction.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ByteCounts {
    /// From downstream.
    pub(crate) received: u64,
    /// To downstream.
    pub(crate) sent: u64,
}

/// Copies in both directions until each has ended on its own, or until the revocation. The flag is true when both
/// ended without error.
pub(crate) async fn copy_both(
    mut downstream: impl AsyncRead + AsyncWrite + Unpin,
    mut upstream: impl AsyncRead + AsyncWrite + Unpin,
    revocation: &Revocation,
) -> (ByteCounts, bool) {
    let (mut up, mut down) = (Pipe::default(), Pipe::default());
    let copy = poll_fn(|cx| {
        let one = up.poll(cx, Pin::new(&mut downstream), Pin::new(&mut upstream))?;
        let other = down.poll(cx, Pin::new(&mut upstream), Pin::new(&mut downstream))?;
        if one.is_ready() && other.is_ready() {
            Poll::Ready(io::Result::Ok(()))
        } else {
            Poll::Pending
        }
    });
    let whole = tokio::select! {
        result = copy => result.is_ok(),
        () = revocation.revoked() => false,
    };
    (
        ByteCounts {
            received: up.copied,
            sent: down.copied,
        },
        whole,
    )
}

/// One direction. It allocates only while bytes wait to be written: an idle tunnel holds no buffer.
#[derive(Debug, Default)]
pub(crate) struct Pipe {
    waiting: Vec<u8>,
    written: usize,
    copied: u64,
    unflushed: bool,
    ended: bool,
    closed: bool,
}

/// Maximum bytes per read.
pub(crate) const READ_SIZE: usize = 16 << 10;

impl Pipe {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        mut from: Pin<&mut impl AsyncRead>,
        mut to: Pin<&mut impl AsyncWrite>,
    ) -> Poll<io::Result<()>> {
        // Bounded, so that one busy tunnel does not starve the others of this worker.
        for _ in 0..32 {
            if self.closed {
                return Poll::Ready(Ok(()));
            }
            while self.written < self.waiting.len() {
                let rest = self.waiting.get(self.written..).unwrap_or_default();
                match ready!(to.as_mut().poll_write(cx, rest))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    written => self.written += written,
                }
            }
            self.waiting = Vec::new();
            self.written = 0;
            if self.ended {
                ready!(to.as_mut().poll_shutdown(cx))?;
                self.closed = true;
                return Poll::Ready(Ok(()));
            }
            let mut space = [const { MaybeUninit::uninit() }; READ_SIZE];
            let mut buffer = ReadBuf::uninit(&mut space);
            match from.as_mut().poll_read(cx, &mut buffer) {
                Poll::Ready(result) => result?,
                Poll::Pending => {
                    if std::mem::take(&mut self.unflushed)
                        && to.as_mut().poll_flush(cx)?.is_pending()
                    {
                        self.unflushed = true;
                    }
                    return Poll::Pending;
                }
            }
            let read = buffer.filled();
            if read.is_empty() {
                self.ended = true;
                continue;
            }
            self.copied += read.len() as u64;
            self.unflushed = true;
            let written = match to.as_mut().poll_write(cx, read) {
                Poll::Ready(result) => result?,
                Poll::Pending => 0,
            };
            self.waiting = read.get(written..).unwrap_or_default().to_vec();
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
