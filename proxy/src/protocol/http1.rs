//! Strict validation of HTTP/1 in front of hyper, from the first byte of a connection to its last.
//!
//! hyper drops `Content-Length` next to `Transfer-Encoding`, accepts `identity, chunked` and lines that end in a bare
//! LF, and cuts `#…` from a target before the proxy sees it; an upstream server may interpret the same bytes
//! differently. So the guard validates each head byte by byte before hyper reads it, and tracks each body to its end,
//! so that the proxy and every server agree on where the next request starts. A message that violates a rule never
//! reaches hyper: in its place hyper gets a placeholder request, to which the service responds with
//! [`Guard::violation`], and nothing after it is read.

mod chunked;
mod head;
#[cfg(test)]
mod tests;
mod violation;

use std::{
    io,
    mem::MaybeUninit,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::task::AtomicWaker;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

use crate::limits::Limits;

pub use self::{
    chunked::{Chunked, MAX_EXTENSIONS, MAX_TRAILER_FIELDS, MAX_TRAILERS, may_be_trailer},
    head::{Framing, Head, MAX_FIELDS, MAX_HEAD, MAX_TARGET, find_end, parse},
    violation::Violation,
};

/// The request that hyper reads in place of a refused message.
const PLACEHOLDER: &[u8] = b"GET / HTTP/1.1\r\nhost: refused.invalid\r\nconnection: close\r\n\r\n";
/// How long to keep reading from a refused connection, so that a reset does not discard the response (RFC 9112 §9.6).
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 256 << 10;

/// The state that the stream and the service share. One per connection.
///
/// Atomic only because hyper requires `Send` for upgraded connections: everything stays on one thread.
#[derive(Debug, Default)]
pub struct Guard {
    heads: AtomicU32,
    broken_at: AtomicU32,
    broken: AtomicU8,
    /// The last response: the request's number, shifted, and whether it switched protocols.
    answer: AtomicU64,
    waker: AtomicWaker,
}

impl Guard {
    /// The violation in the request with this number on the connection, counted from 1.
    pub fn violation(&self, request: u32) -> Option<Violation> {
        if self.broken_at.load(Ordering::Relaxed) != request {
            return None;
        }
        Violation::from_code(self.broken.load(Ordering::Relaxed))
    }

    /// The violation in the current request, if any.
    pub fn broken(&self) -> Option<Violation> {
        Violation::from_code(self.broken.load(Ordering::Relaxed))
    }

    /// The number of heads that passed.
    pub fn heads(&self) -> u32 {
        self.heads.load(Ordering::Relaxed)
    }

    /// Reports the outcome of the request with this number: only after 101 the following bytes are not HTTP.
    pub fn answered(&self, request: u32, switched: bool) {
        let answer = u64::from(request) << 1 | u64::from(switched);
        self.answer.store(answer, Ordering::Relaxed);
        self.waker.wake();
    }

    /// Whether the request with this number switched protocols, once that is known.
    fn switched(&self, request: u32) -> Option<bool> {
        let answer = self.answer.load(Ordering::Relaxed);
        (answer >> 1 == u64::from(request)).then_some(answer & 1 == 1)
    }

    fn refuse(&self, violation: Violation, request: u32) {
        self.broken.store(violation as u8, Ordering::Relaxed);
        self.broken_at.store(request, Ordering::Relaxed);
    }
}

/// A connection whose HTTP/1 bytes are validated before hyper reads them.
#[derive(Debug)]
pub struct GuardedStream<T> {
    inner: T,
    guard: Arc<Guard>,
    state: State,
    /// Bytes that were read and not yet delivered; `pos..cleared` may be delivered.
    buffer: Vec<u8>,
    pos: usize,
    cleared: usize,
    /// How much of an incomplete head was searched for its end.
    searched: usize,
    /// Whether the current head was validated in this step.
    head_in_this_step: bool,
    /// When the current head must be complete.
    deadline: Option<Pin<Box<Sleep>>>,
    head_timeout: Duration,
    linger: Option<(Pin<Box<Sleep>>, usize)>,
}

#[derive(Debug)]
enum State {
    Head,
    Length {
        left: u64,
        upgrade: bool,
    },
    Chunks {
        body: Chunked,
        upgrade: bool,
    },
    /// Nothing after an upgrade request is read until the response is known.
    AwaitAnswer,
    Switched,
    Refused,
}

impl<T> GuardedStream<T> {
    /// Guards `inner`, from which `prefix` was already read, with the default time limit of a head.
    pub fn new(inner: T, prefix: Vec<u8>) -> (Self, Arc<Guard>) {
        Self::with_head_timeout(inner, prefix, Limits::default().head_timeout)
    }

    /// As [`GuardedStream::new`]. Each head must be complete `head_timeout` after its first byte.
    pub fn with_head_timeout(
        inner: T,
        prefix: Vec<u8>,
        head_timeout: Duration,
    ) -> (Self, Arc<Guard>) {
        let guard = Arc::new(Guard::default());
        let this = Self {
            inner,
            guard: Arc::clone(&guard),
            state: State::Head,
            buffer: prefix,
            pos: 0,
            cleared: 0,
            searched: 0,
            head_in_this_step: false,
            deadline: None,
            head_timeout,
            linger: None,
        };
        (this, guard)
    }

    /// Validates new `bytes` and returns how many of them hyper may read now.
    /// At most one message ends in each step, so that hyper never holds a part of the next.
    fn check(&mut self, bytes: &[u8]) -> Result<usize, Violation> {
        let mut cleared = 0;
        self.head_in_this_step = false;
        loop {
            let rest = bytes.get(cleared..).unwrap_or_default();
            match &mut self.state {
                State::Head if cleared > 0 => return Ok(cleared),
                State::Head => {
                    let Some(end) = find_end(rest, self.searched)? else {
                        self.searched = rest.len();
                        return Ok(0);
                    };
                    self.searched = 0;
                    let head = parse(rest.get(..end).unwrap_or_default())?;
                    self.guard.heads.fetch_add(1, Ordering::Relaxed);
                    self.deadline = None;
                    self.head_in_this_step = true;
                    cleared = end;
                    self.state = match head.framing {
                        Framing::Length(left) => State::Length {
                            left,
                            upgrade: head.upgrade,
                        },
                        Framing::Chunked => State::Chunks {
                            body: Chunked::default(),
                            upgrade: head.upgrade,
                        },
                    };
                }
                State::Length { left: 0, upgrade } => {
                    self.state = if *upgrade {
                        State::AwaitAnswer
                    } else {
                        State::Head
                    };
                    return Ok(cleared);
                }
                State::Length { left, .. } => {
                    if rest.is_empty() {
                        return Ok(cleared);
                    }
                    let here = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                    *left -= here as u64;
                    cleared += here;
                }
                State::Chunks { body, upgrade } => {
                    cleared += body.follow(rest)?;
                    if body.ended() {
                        self.state = if *upgrade {
                            State::AwaitAnswer
                        } else {
                            State::Head
                        };
                    }
                    return Ok(cleared);
                }
                State::AwaitAnswer | State::Refused => return Ok(cleared),
                State::Switched => return Ok(bytes.len()),
            }
        }
    }

    fn refuse(&mut self, violation: Violation) -> io::Result<()> {
        let heads = self.guard.heads.load(Ordering::Relaxed);
        let at_head = matches!(self.state, State::Head);
        if at_head || self.head_in_this_step {
            // A head that arrived together with the violation after it has not been delivered either.
            self.guard
                .refuse(violation, if at_head { heads + 1 } else { heads });
            self.deadline = None;
            self.state = State::Refused;
            self.buffer = PLACEHOLDER.to_vec();
            self.pos = 0;
            self.cleared = self.buffer.len();
            Ok(())
        } else {
            // The service already has the head of this request: its body ends with an error.
            self.guard.refuse(violation, heads);
            self.state = State::Refused;
            self.buffer.clear();
            self.pos = 0;
            self.cleared = 0;
            Err(io::Error::new(
                io::ErrorKind::InvalidData,
                violation.message(),
            ))
        }
    }

    fn deliver(&mut self, into: &mut ReadBuf<'_>) {
        let ready = self.buffer.get(self.pos..self.cleared).unwrap_or_default();
        let now = ready.get(..into.remaining()).unwrap_or(ready);
        into.put_slice(now);
        self.pos += now.len();
        if self.pos == self.buffer.len() {
            // An idle connection frees its buffer.
            self.buffer = Vec::new();
            self.pos = 0;
            self.cleared = 0;
        }
    }

    /// Validates the buffered bytes. Returns true when some can be delivered.
    fn check_buffer(&mut self) -> io::Result<bool> {
        if self.pos > 0 {
            self.buffer.drain(..self.pos);
            self.cleared -= self.pos;
            self.pos = 0;
        }
        if self.cleared >= self.buffer.len() {
            return Ok(false);
        }
        let buffer = std::mem::take(&mut self.buffer);
        let result = self.check(buffer.get(self.cleared..).unwrap_or_default());
        self.buffer = buffer;
        match result {
            Ok(cleared) => self.cleared += cleared,
            Err(violation) => self.refuse(violation)?,
        }
        Ok(self.cleared > self.pos)
    }
}

impl<T: AsyncRead + Unpin> GuardedStream<T> {
    /// Reads directly into the reader's buffer and leaves there what may be read: the common case copies nothing.
    fn read_through(
        &mut self,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<Step>> {
        let before = into.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, into))?;
        let fresh = into.filled().get(before..).unwrap_or_default();
        if fresh.is_empty() {
            return Poll::Ready(Ok(Step::Ended));
        }
        match self.check(fresh) {
            Ok(cleared) => {
                let kept = fresh.get(cleared..).unwrap_or_default();
                if !kept.is_empty() {
                    self.buffer.extend_from_slice(kept);
                }
                into.set_filled(before + cleared);
                Poll::Ready(Ok(if cleared > 0 {
                    Step::Delivered
                } else {
                    Step::More
                }))
            }
            Err(violation) => {
                into.set_filled(before);
                self.refuse(violation)?;
                Poll::Ready(Ok(Step::More))
            }
        }
    }

    /// Whether an incomplete head has exceeded its time limit.
    fn head_timed_out(&mut self, cx: &mut Context<'_>) -> bool {
        if !matches!(self.state, State::Head) {
            return false;
        }
        let timer = self
            .deadline
            .get_or_insert_with(|| Box::pin(sleep(self.head_timeout)));
        timer.as_mut().poll(cx).is_ready()
    }

    fn read_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Step>> {
        let mut space = [const { MaybeUninit::uninit() }; 4096];
        let mut buffer = ReadBuf::uninit(&mut space);
        ready!(Pin::new(&mut self.inner).poll_read(cx, &mut buffer))?;
        if buffer.filled().is_empty() {
            return Poll::Ready(Ok(Step::Ended));
        }
        self.buffer.extend_from_slice(buffer.filled());
        Poll::Ready(Ok(Step::More))
    }
}

enum Step {
    Delivered,
    More,
    Ended,
}

impl<T: AsyncRead + Unpin> AsyncRead for GuardedStream<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if into.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            if this.cleared > this.pos {
                this.deliver(into);
                return Poll::Ready(Ok(()));
            }
            match this.state {
                // The response closes the connection; further bytes from the peer are ignored.
                State::Refused => return Poll::Pending,
                State::AwaitAnswer => {
                    this.guard.waker.register(cx.waker());
                    match this
                        .guard
                        .switched(this.guard.heads.load(Ordering::Relaxed))
                    {
                        Some(false) => this.state = State::Head,
                        Some(true) => this.state = State::Switched,
                        None => return Poll::Pending,
                    }
                }
                State::Switched if this.buffer.is_empty() => {
                    return Pin::new(&mut this.inner).poll_read(cx, into);
                }
                _ => {}
            }
            if this.check_buffer()? || matches!(this.state, State::AwaitAnswer | State::Refused) {
                continue;
            }
            let step = if this.buffer.is_empty() {
                ready!(this.read_through(cx, into))?
            } else {
                match this.read_more(cx) {
                    Poll::Ready(step) => step?,
                    Poll::Pending if this.head_timed_out(cx) => {
                        this.refuse(Violation::Timeout)?;
                        continue;
                    }
                    Poll::Pending => return Poll::Pending,
                }
            };
            match step {
                Step::Delivered | Step::Ended => return Poll::Ready(Ok(())),
                // The deadline of a head starts with its first byte.
                Step::More => {
                    if this.buffer.len() > this.cleared && this.head_timed_out(cx) {
                        this.refuse(Violation::Timeout)?;
                    }
                }
            }
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for GuardedStream<T> {
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

    /// Closes the write half. If the peer may still be sending, it then reads and discards bytes for a short time:
    /// closing with unread bytes would reset the connection, and the peer might not receive the response.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let unread = match this.state {
            State::Length { left, .. } => left > 0,
            State::Chunks { .. } | State::Refused => true,
            State::Head | State::AwaitAnswer => !this.buffer.is_empty(),
            State::Switched => false,
        };
        if this.linger.is_none() {
            ready!(Pin::new(&mut this.inner).poll_shutdown(cx))?;
            if !unread {
                return Poll::Ready(Ok(()));
            }
        }
        let (timer, read) = this
            .linger
            .get_or_insert_with(|| (Box::pin(sleep(LINGER)), 0));
        let mut space = [0_u8; 4096];
        while *read < LINGER_BYTES && timer.as_mut().poll(cx).is_pending() {
            let mut buffer = ReadBuf::new(&mut space);
            match ready!(Pin::new(&mut this.inner).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => *read += buffer.filled().len(),
                _ => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}
