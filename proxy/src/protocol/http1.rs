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

pub use self::{
    chunked::{Chunked, MAX_EXTENSIONS, MAX_TRAILER_FIELDS, MAX_TRAILERS, may_be_trailer},
    head::{Framing, Head, MAX_FIELDS, MAX_HEAD, MAX_TARGET, find_end, parse},
    violation::Violation,
};

/// What stands in place of a refused message.
const STAND_IN: &[u8] = b"GET / HTTP/1.1\r\nhost: refused.invalid\r\nconnection: close\r\n\r\n";
/// How long a head may take from its first byte to its last.
const HEAD_TIME: Duration = Duration::from_secs(10);
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
    /// The last answer: the request's number, shifted, and whether it switched.
    answer: AtomicU64,
    waker: AtomicWaker,
}

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

    /// How many heads have passed.
    pub fn heads(&self) -> u32 {
        self.heads.load(Ordering::Relaxed)
    }

    /// Tells the outcome of the `request`th request: only after 101 the bytes behind it are no HTTP.
    pub fn answered(&self, request: u32, switched: bool) {
        let answer = u64::from(request) << 1 | u64::from(switched);
        self.answer.store(answer, Ordering::Relaxed);
        self.waker.wake();
    }

    /// Whether the `request`th request led to another protocol, once that is known.
    fn switched(&self, request: u32) -> Option<bool> {
        let answer = self.answer.load(Ordering::Relaxed);
        (answer >> 1 == u64::from(request)).then_some(answer & 1 == 1)
    }

    fn refuse(&self, violation: Violation, request: u32) {
        self.broken.store(violation as u8, Ordering::Relaxed);
        self.broken_at.store(request, Ordering::Relaxed);
    }
}

/// A connection whose HTTP/1 bytes are judged before they are read.
#[derive(Debug)]
pub struct GuardedStream<T> {
    inner: T,
    guard: Arc<Guard>,
    state: State,
    /// What was read and not yet delivered: of it `pos..clear` may be.
    held: Vec<u8>,
    pos: usize,
    clear: usize,
    /// How much of an unfinished head was searched for its end.
    seen: usize,
    /// The head that is looked at began in this very step.
    begun_now: bool,
    /// When a head that was begun must be whole.
    deadline: Option<Pin<Box<Sleep>>>,
    head_time: Duration,
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

impl<T> GuardedStream<T> {
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
            begun_now: false,
            deadline: None,
            head_time: HEAD_TIME,
            linger: None,
        };
        (this, guard)
    }

    /// Follows `bytes`, which nobody has seen, and says how many of them hyper may read now.
    /// One message ends at most in each step, so that hyper never holds a part of the next.
    fn examine(&mut self, bytes: &[u8]) -> Result<usize, Violation> {
        let mut cleared = 0;
        self.begun_now = false;
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
                    self.deadline = None;
                    self.begun_now = true;
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
        if at_head || self.begun_now {
            // A head that came in one piece with what is wrong behind it has not been given on either.
            self.guard
                .refuse(violation, if at_head { heads + 1 } else { heads });
            self.deadline = None;
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

impl<T: AsyncRead + Unpin> GuardedStream<T> {
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

    /// Whether a head was begun and is not whole in time.
    fn is_late(&mut self, cx: &mut Context<'_>) -> bool {
        if !matches!(self.state, State::Head) {
            return false;
        }
        let timer = self
            .deadline
            .get_or_insert_with(|| Box::pin(sleep(self.head_time)));
        timer.as_mut().poll(cx).is_ready()
    }

    fn read_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Step>> {
        let mut space = [const { MaybeUninit::uninit() }; 4096];
        let mut buffer = ReadBuf::uninit(&mut space);
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
            if this.clear > this.pos {
                this.deliver(into);
                return Poll::Ready(Ok(()));
            }
            match this.state {
                // The answer closes the connection; what the peer sends meanwhile is nobody's.
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
                match this.read_more(cx) {
                    Poll::Ready(step) => step?,
                    Poll::Pending if this.is_late(cx) => {
                        this.refuse(Violation::Timeout)?;
                        continue;
                    }
                    Poll::Pending => return Poll::Pending,
                }
            };
            match step {
                Step::Delivered | Step::Ended => return Poll::Ready(Ok(())),
                // A head that is begun is waited for with a deadline, from its first byte.
                Step::More => {
                    if this.held.len() > this.clear && this.is_late(cx) {
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
