//! Limits HTTP/2 control frames, which are cheap to send and expensive to process: h2 accepts 300,000 of them in three
//! seconds without closing.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Duration, Instant},
};

use crate::limits::Limits;

const PREFACE: usize = 24;

/// An HTTP/2 connection whose frames are counted as they are read.
#[derive(Debug)]
pub struct GuardedFrames<T> {
    inner: T,
    prefix: Vec<u8>,
    counter: FrameCounter,
}

/// Parses frame headers out of a byte stream (RFC 9113 §4.1).
#[derive(Debug)]
pub struct FrameCounter {
    skip: usize,
    header: [u8; 9],
    header_len: usize,
    control_frames: u32,
    resets: u32,
    window_start: Instant,
    max_control_frames: u32,
    max_resets: u32,
    window: Duration,
}

impl Default for FrameCounter {
    fn default() -> Self {
        Self::new(&Limits::default())
    }
}

impl FrameCounter {
    /// A counter for a new connection.
    pub fn new(limits: &Limits) -> Self {
        Self {
            skip: PREFACE,
            header: [0; 9],
            header_len: 0,
            control_frames: 0,
            resets: 0,
            window_start: Instant::now(),
            max_control_frames: limits.h2_control_frames,
            max_resets: limits.h2_reset_frames,
            window: limits.h2_frame_window,
        }
    }

    /// Processes `bytes`. Returns false when a limit is exceeded.
    pub fn process(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let here = self.skip.min(bytes.len());
                self.skip -= here;
                bytes = bytes.get(here..).unwrap_or_default();
                continue;
            }
            let here = (self.header.len() - self.header_len).min(bytes.len());
            let (part, rest) = bytes.split_at_checked(here).unwrap_or_default();
            if let Some(room) = self.header.get_mut(self.header_len..self.header_len + here) {
                room.copy_from_slice(part);
            }
            self.header_len += here;
            bytes = rest;
            if self.header_len == self.header.len() {
                self.header_len = 0;
                let [high, middle, low, kind, ..] = self.header;
                self.skip = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
                if !self.count(kind) {
                    return false;
                }
            }
        }
        true
    }

    fn count(&mut self, kind: u8) -> bool {
        const PRIORITY: u8 = 2;
        const RST_STREAM: u8 = 3;
        const SETTINGS: u8 = 4;
        const PING: u8 = 6;
        match kind {
            PRIORITY | SETTINGS | PING => self.control_frames += 1,
            RST_STREAM => self.resets += 1,
            _ => return true,
        }
        if self.control_frames <= self.max_control_frames && self.resets <= self.max_resets {
            return true;
        }
        // The clock is read only when a limit is exceeded.
        let window_elapsed = self.window_start.elapsed() >= self.window;
        self.window_start = Instant::now();
        self.control_frames = 0;
        self.resets = 0;
        window_elapsed
    }
}

impl<T> GuardedFrames<T> {
    /// Wraps `inner`, from which `prefix` was already read.
    pub fn new(inner: T, prefix: Vec<u8>, limits: &Limits) -> Self {
        Self {
            inner,
            prefix,
            counter: FrameCounter::new(limits),
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for GuardedFrames<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = into.filled().len();
        if this.prefix.is_empty() {
            ready!(Pin::new(&mut this.inner).poll_read(cx, into))?;
        } else {
            let here = this.prefix.len().min(into.remaining());
            let rest = this.prefix.split_off(here);
            into.put_slice(&this.prefix);
            this.prefix = rest;
        }
        if this
            .counter
            .process(into.filled().get(before..).unwrap_or_default())
        {
            return Poll::Ready(Ok(()));
        }
        into.set_filled(before);
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::ConnectionAborted,
            "too many control frames",
        )))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for GuardedFrames<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

/// Spawns hyper's tasks on this thread.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LocalExecutor;

impl<F> hyper::rt::Executor<F> for LocalExecutor
where
    F: Future<Output = ()> + 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: usize) -> Vec<u8> {
        let [.., high, middle, low] = payload.to_be_bytes();
        let mut bytes = vec![high, middle, low, kind, 0, 0, 0, 0, 0];
        bytes.resize(9 + payload, 7);
        bytes
    }

    fn counter() -> FrameCounter {
        let mut counter = FrameCounter::default();
        assert!(counter.process(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"));
        counter
    }

    #[test]
    fn data_frames_are_not_limited() {
        let mut counter = counter();
        for _ in 0..100_000 {
            assert!(counter.process(&frame(0, 100)));
        }
    }

    #[test]
    fn the_thousand_and_first_ping_exceeds_the_limit_for_every_chunk_size() {
        for size in [1, 7, 64, 100_000] {
            let mut counter = counter();
            let bytes: Vec<u8> = (0..=Limits::default().h2_control_frames)
                .flat_map(|_| frame(6, 8))
                .collect();
            let mut pieces = bytes.chunks(size);
            assert!(
                !pieces.all(|piece| counter.process(piece)),
                "in pieces of {size}"
            );
            let mut counter = self::counter();
            assert!(counter.process(&bytes[..bytes.len() - 17]));
        }
    }
}
