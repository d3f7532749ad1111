//! A TCP connection whose reads and writes have a time limit, so that a test fails instead of waiting forever.

use std::{
    fmt, io,
    ops::{Deref, DerefMut},
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep},
};

use crate::wait::TIMEOUT;

/// A TCP connection. A read or write that makes no progress for [`TIMEOUT`] panics: as an error, it would look like the
/// end of the connection that many tests wait for.
pub struct Connection {
    stream: TcpStream,
    read: Limit,
    write: Limit,
}

impl From<TcpStream> for Connection {
    fn from(stream: TcpStream) -> Self {
        Self {
            stream,
            read: Limit::default(),
            write: Limit::default(),
        }
    }
}

/// Runs while an operation waits.
#[derive(Default)]
struct Limit {
    sleep: Option<Pin<Box<Sleep>>>,
    waits: bool,
}

impl Limit {
    fn apply<T>(
        &mut self,
        context: &mut Context<'_>,
        what: &str,
        progress: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if progress.is_ready() {
            self.waits = false;
            return progress;
        }
        let limit = self.sleep.get_or_insert_with(|| Box::pin(sleep(TIMEOUT)));
        if !self.waits {
            limit.as_mut().reset(Instant::now() + TIMEOUT);
            self.waits = true;
        }
        ready!(limit.as_mut().poll(context));
        panic!("the peer {what} nothing for {TIMEOUT:?}");
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let progress = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.read.apply(context, "sent", progress)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let progress = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.write.apply(context, "accepted", progress)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl Deref for Connection {
    type Target = TcpStream;

    fn deref(&self) -> &TcpStream {
        &self.stream
    }
}

impl DerefMut for Connection {
    fn deref_mut(&mut self) -> &mut TcpStream {
        &mut self.stream
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stream.fmt(f)
    }
}
