//! Bodies on their way through: streamed, counted, never gathered.

use std::{
    cell::Cell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::{exchange::Exchange, open_permit::Standing};
use crate::{protocol::http1::may_be_trailer, upstream::Returned};

/// Why a body ended before its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// The sender broke off or broke the framing.
    #[error("the body broke off")]
    Broken(#[from] hyper::Error),
    /// It grew past its limit.
    #[error("the body is larger than {0} bytes")]
    TooLarge(u64),
    /// The snapshot changed and with it the answer.
    #[error("no longer permitted")]
    Revoked,
}

/// What is known of a request's body while it passes.
#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) bytes: Cell<u64>,
    limit: u64,
    over: Cell<bool>,
    broken: Cell<bool>,
    /// What it may pass by, where that is decided here.
    standing: Option<Rc<Standing>>,
}

impl Flow {
    pub(crate) fn new(limit: Option<u64>, standing: Option<Rc<Standing>>) -> Rc<Self> {
        Rc::new(Self {
            bytes: Cell::new(0),
            limit: limit.unwrap_or(u64::MAX),
            over: Cell::new(false),
            broken: Cell::new(false),
            standing,
        })
    }

    /// The limit that it grew past.
    pub(crate) fn over(&self) -> Option<u64> {
        self.over.get().then_some(self.limit)
    }

    /// Whether the caller broke off or broke the framing.
    pub(crate) fn broken(&self) -> bool {
        self.broken.get()
    }
}

/// A request's body on its way to an upstream.
#[derive(Debug)]
pub(crate) enum RequestBody {
    /// None.
    Empty,
    /// Read whole, because a rule asked.
    Whole(Option<Bytes>),
    /// As it comes.
    Stream(Incoming, Rc<Flow>),
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(incoming, flow) => {
                let polled = held(flow.standing.as_ref(), cx, |cx| {
                    Pin::new(incoming).poll_frame(cx)
                });
                let Some(polled) = polled else {
                    return Poll::Ready(Some(Err(BodyError::Revoked)));
                };
                let frame = match ready!(polled) {
                    None => return Poll::Ready(None),
                    Some(Err(error)) => {
                        flow.broken.set(true);
                        return Poll::Ready(Some(Err(error.into())));
                    }
                    Some(Ok(frame)) => frame,
                };
                if let Some(data) = frame.data_ref() {
                    let bytes = flow.bytes.get() + data.len() as u64;
                    flow.bytes.set(bytes);
                    if bytes > flow.limit {
                        flow.over.set(true);
                        return Poll::Ready(Some(Err(BodyError::TooLarge(flow.limit))));
                    }
                }
                Poll::Ready(Some(Ok(keep_trailers_clean(frame))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Whole(bytes) => bytes.is_none(),
            Self::Stream(incoming, _) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Self::Stream(incoming, _) => incoming.size_hint(),
        }
    }
}

/// Polls what passes by a permission, which wakes the task when it ends; `None`: it has ended.
fn held<T>(
    standing: Option<&Rc<Standing>>,
    cx: &mut Context<'_>,
    poll: impl FnOnce(&mut Context<'_>) -> Poll<T>,
) -> Option<Poll<T>> {
    let Some(standing) = standing else {
        return Some(poll(cx));
    };
    if standing.leash.is_pulled() {
        return None;
    }
    let polled = poll(cx);
    if polled.is_pending() {
        standing.leash.wake(cx);
    }
    Some(polled)
}

/// Trailers come behind the decision, so nothing that was decided on may come in them.
fn keep_trailers_clean(frame: Frame<Bytes>) -> Frame<Bytes> {
    match frame.into_trailers() {
        Ok(trailers) => {
            let kept = trailers
                .iter()
                .filter(|(name, _)| {
                    may_be_trailer(name.as_str().as_bytes()) && !name.as_str().contains('_')
                })
                .map(|(name, value)| (name.clone(), value.clone()));
            Frame::trailers(kept.collect::<HeaderMap>())
        }
        Err(frame) => frame,
    }
}

/// An answer's body on its way to whoever asked. When it ends, or is dropped, the request is over.
#[derive(Debug)]
pub(crate) struct AnswerBody {
    source: Source,
    exchange: Option<Box<Exchange>>,
    held: Held,
    /// What it may pass by, where that is decided here.
    standing: Option<Rc<Standing>>,
}

/// What an answer keeps until its body has passed.
pub(crate) type Held = Option<Returned>;

#[derive(Debug)]
enum Source {
    Ours(Option<Bytes>),
    Upstream(Incoming),
}

impl AnswerBody {
    /// An answer that we made.
    pub(crate) fn ours(bytes: Bytes) -> Self {
        let source = Source::Ours(Some(bytes).filter(|bytes| !bytes.is_empty()));
        Self {
            source,
            exchange: None,
            held: None,
            standing: None,
        }
    }

    /// An upstream's answer, which gives `held` back when it has passed.
    pub(crate) fn upstream(incoming: Incoming, held: Held, standing: Option<Rc<Standing>>) -> Self {
        Self {
            source: Source::Upstream(incoming),
            exchange: None,
            held,
            standing,
        }
    }

    /// From here on the request is over when this body is.
    pub(crate) fn concludes(mut self, exchange: Box<Exchange>) -> Self {
        if self.is_end_stream() {
            exchange.conclude(false);
            self.held = None;
        } else {
            self.exchange = Some(exchange);
        }
        self
    }

    fn conclude(&mut self, aborted: bool) {
        if let Some(exchange) = self.exchange.take() {
            exchange.conclude(aborted);
        }
        self.held = None;
    }
}

impl Drop for AnswerBody {
    fn drop(&mut self) {
        // hyper does not ask again once all of `Content-Length` has passed.
        let aborted = !self.is_end_stream();
        if aborted && let Some(held) = &mut self.held {
            held.spoil();
        }
        self.conclude(aborted);
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let frame = match &mut this.source {
            Source::Ours(bytes) => bytes.take().map(|bytes| Ok(Frame::data(bytes))),
            Source::Upstream(incoming) => {
                let polled = held(this.standing.as_ref(), cx, |cx| {
                    Pin::new(incoming).poll_frame(cx)
                });
                let Some(polled) = polled else {
                    if let Some(held) = &mut this.held {
                        held.spoil();
                    }
                    let why = this.standing.as_ref().and_then(|one| one.over());
                    if let (Some(exchange), Some(denial)) = (&mut this.exchange, why) {
                        exchange.ended(denial);
                    }
                    this.conclude(true);
                    return Poll::Ready(Some(Err(BodyError::Revoked)));
                };
                ready!(polled)
            }
        };
        match frame {
            Some(Ok(frame)) => {
                if let (Some(data), Some(exchange)) = (frame.data_ref(), &mut this.exchange) {
                    exchange.bytes_out += data.len() as u64;
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                if let Some(held) = &mut this.held {
                    held.spoil();
                }
                this.conclude(true);
                Poll::Ready(Some(Err(error.into())))
            }
            None => {
                this.conclude(false);
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Ours(bytes) => bytes.is_none(),
            Source::Upstream(incoming) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Ours(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64)
            }
            Source::Upstream(incoming) => incoming.size_hint(),
        }
    }
}
