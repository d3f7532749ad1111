//! A strict look at HTTP/1 bytes in front of hyper, from the first byte of a connection to its last.
//!
//! hyper drops `Content-Length` beside `Transfer-Encoding`, takes `identity, chunked`, lines that end in LF alone, and
//! cuts `#…` from a target before our code sees it; a server behind us may read the same bytes otherwise. So each head
//! is judged here, byte by byte, before hyper reads it, and each body is followed to its end, so that what we take for
//! the next request is what everybody takes for it. A message that breaks a rule never reaches hyper: in its place
//! hyper gets a request of ours, for which the service answers what [`Guard::violation`] says, and nothing behind it
//! is read.

mod chunked;
mod head;
mod violation;

#[cfg(test)]
mod tests;

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU32, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::task::AtomicWaker;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

pub use self::{
    chunked::{Chunked, MAX_EXTENSIONS, MAX_TRAILER_FIELDS, MAX_TRAILERS, may_be_trailer},
    head::{Framing, Head, MAX_FIELDS, MAX_HEAD, MAX_TARGET, find_end, parse},
    violation::Violation,
};

/// What stands in place of a refused message.
const STAND_IN: &[u8] = b"GET / HTTP/1.1\r\nhost: refused.invalid\r\nconnection: close\r\n\r\n";
/// How long a refused connection is read on, so that its answer is not lost to a reset (RFC 9112 §9.6).
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 256 << 10;

/// What the bytes and the service tell each other. One per connection.
///
/// Atomic only because hyper asks that what it hands out after an upgrade can be sent: all of it stays on one thread.
#[derive(Debug, Default)]
pub struct Guard {
    heads: AtomicU32,
    broken_at: AtomicU32,
    broken: AtomicU8,
    answer: AtomicU8,
    waker: AtomicWaker,
}

const UNDECIDED: u8 = 0;
const PLAIN: u8 = 1;
const SWITCHED: u8 = 2;

impl Guard {
    /// What the `request`th request of this connection breaks, counted from 1.
    pub fn violation(&self, request: u32) -> Option<Violation> {
        if self.broken_at.load(Ordering::Relaxed) != request {
            return None;
        }
        Violation::from_code(self.broken.load(Ordering::Relaxed))
    }

    /// What the body of the request now in hand breaks, if it does.
    pub fn broken(&self) -> Option<Violation> {
        Violation::from_code(self.broken.load(Ordering::Relaxed))
    }

    /// Tells the outcome of a request that asked for an upgrade: only after 101 the bytes behind it are no HTTP.
    pub fn answered(&self, switched: bool) {
        self.answer
            .store(if switched { SWITCHED } else { PLAIN }, Ordering::Relaxed);
        self.waker.wake();
    }

    fn refuse(&self, violation: Violation, request: u32) {
        self.broken.store(violation as u8, Ordering::Relaxed);
        self.broken_at.store(request, Ordering::Relaxed);
    }
}

/// A connection whose HTTP/1 bytes are judged before they are read.
#[derive(Debug)]
pub struct Strict<T> {
    inner: T,
    guard: Arc<Guard>,
    state: State,
    /// What was read and not yet delivered: of it `pos..clear` may be.
    held: Vec<u8>,
    pos: usize,
    clear: usize,
    /// How much of an unfinished head was searched for its end.
    seen: usize,
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
    /// Until the answer to an upgrade is known, nothing behind the request is read.
    AwaitAnswer,
    Switched,
    Refused,
}

impl<T> Strict<T> {
    /// Guards `inner`, of which `begun` was read already.
    pub fn new(inner: T, begun: Vec<u8>) -> (Self, Arc<Guard>) {
        let guard = Arc::new(Guard::default());
        let this = Self {
            inner,
            guard: Arc::clone(&guard),
            state: State::Head,
            held: begun,
            pos: 0,
            clear: 0,
            seen: 0,
            linger: None,
        };
        (this, guard)
    }

    /// Follows `bytes`, which nobody has seen, and says how many of them hyper may read now.
    /// One message ends at most in each step, so that hyper never holds a part of the next.
    fn examine(&mut self, bytes: &[u8]) -> Result<usize, Violation> {
        let mut cleared = 0;
        loop {
            let rest = bytes.get(cleared..).unwrap_or_default();
            match &mut self.state {
                State::Head if cleared > 0 => return Ok(cleared),
                State::Head => {
                    let Some(end) = find_end(rest, self.seen)? else {
                        self.seen = rest.len();
                        return Ok(0);
                    };
                    self.seen = 0;
                    let head = parse(rest.get(..end).unwrap_or_default())?;
                    self.guard.heads.fetch_add(1, Ordering::Relaxed);
                    self.guard.answer.store(UNDECIDED, Ordering::Relaxed);
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
        if matches!(self.state, State::Head) {
            self.guard.refuse(violation, heads + 1);
            self.state = State::Refused;
            self.held = STAND_IN.to_vec();
            self.pos = 0;
            self.clear = self.held.len();
            Ok(())
        } else {
            // The head of this request is with the service already: its body ends in an error.
            self.guard.refuse(violation, heads);
            self.state = State::Refused;
            self.held.clear();
            self.pos = 0;
            self.clear = 0;
            Err(io::Error::new(
                io::ErrorKind::InvalidData,
                violation.sentence(),
            ))
        }
    }

    fn deliver(&mut self, into: &mut ReadBuf<'_>) {
        let ready = self.held.get(self.pos..self.clear).unwrap_or_default();
        let now = ready.get(..into.remaining()).unwrap_or(ready);
        into.put_slice(now);
        self.pos += now.len();
        if self.pos == self.held.len() {
            // An idle connection gives its memory back.
            self.held = Vec::new();
            self.pos = 0;
            self.clear = 0;
        }
    }

    /// Looks at what is held and unseen. True when something can be delivered.
    fn examine_held(&mut self) -> io::Result<bool> {
        if self.pos > 0 {
            self.held.drain(..self.pos);
            self.clear -= self.pos;
            self.pos = 0;
        }
        if self.clear >= self.held.len() {
            return Ok(false);
        }
        let held = std::mem::take(&mut self.held);
        let result = self.examine(held.get(self.clear..).unwrap_or_default());
        self.held = held;
        match result {
            Ok(cleared) => self.clear += cleared,
            Err(violation) => self.refuse(violation)?,
        }
        Ok(self.clear > self.pos)
    }
}

impl<T: AsyncRead + Unpin> Strict<T> {
    /// Reads straight into the reader's buffer and leaves there what may be read: the usual case copies nothing.
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
        match self.examine(fresh) {
            Ok(cleared) => {
                let kept = fresh.get(cleared..).unwrap_or_default();
                if !kept.is_empty() {
                    self.held.extend_from_slice(kept);
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

    fn read_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Step>> {
        let mut space = [0_u8; 4096];
        let mut buffer = ReadBuf::new(&mut space);
        ready!(Pin::new(&mut self.inner).poll_read(cx, &mut buffer))?;
        if buffer.filled().is_empty() {
            return Poll::Ready(Ok(Step::Ended));
        }
        self.held.extend_from_slice(buffer.filled());
        Poll::Ready(Ok(Step::More))
    }
}

enum Step {
    Delivered,
    More,
    Ended,
}

impl<T: AsyncRead + Unpin> AsyncRead for Strict<T> {
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
            if this.clear > this.pos {
                this.deliver(into);
                return Poll::Ready(Ok(()));
            }
            match this.state {
                // The answer closes the connection; what the peer sends meanwhile is nobody's.
                State::Refused => return Poll::Pending,
                State::AwaitAnswer => match this.guard.answer.load(Ordering::Relaxed) {
                    PLAIN => this.state = State::Head,
                    SWITCHED => this.state = State::Switched,
                    _ => {
                        this.guard.waker.register(cx.waker());
                        return Poll::Pending;
                    }
                },
                State::Switched if this.held.is_empty() => {
                    return Pin::new(&mut this.inner).poll_read(cx, into);
                }
                _ => {}
            }
            if this.examine_held()? || matches!(this.state, State::AwaitAnswer | State::Refused) {
                continue;
            }
            let step = if this.held.is_empty() {
                ready!(this.read_through(cx, into))?
            } else {
                ready!(this.read_more(cx))?
            };
            match step {
                Step::Delivered | Step::Ended => return Poll::Ready(Ok(())),
                Step::More => {}
            }
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Strict<T> {
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

    /// Closes our half. Where the peer may still be sending, it then reads on for a moment and throws away:
    /// closing with unread bytes would reset the connection, and the peer might never see its answer.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let unread = match this.state {
            State::Length { left, .. } => left > 0,
            State::Chunks { .. } | State::Refused => true,
            State::Head | State::AwaitAnswer => !this.held.is_empty(),
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
