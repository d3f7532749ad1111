//! A request's body on its way to an upstream: streamed, counted, never buffered.

use std::{
    cell::Cell,
    fmt::Debug,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::protocol::{
    http1::{MAX_TRAILER_FIELDS, MAX_TRAILERS, may_be_trailer},
    revocation::Revocation,
};

/// Why a body ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// The sender aborted or violated the framing.
    #[error("the body is incomplete")]
    Broken(#[from] hyper::Error),
    /// It exceeded its limit.
    #[error("the body is larger than {0} bytes")]
    TooLarge(u64),
    /// The trailers are too large or too many.
    #[error("the trailers are too large or too many")]
    Trailers,
    /// The permit was revoked.
    #[error("no longer permitted")]
    Revoked,
}

/// The progress of a request's body.
#[derive(Debug)]
pub(crate) struct BodyProgress {
    pub(crate) bytes: Cell<u64>,
    limit: u64,
    exceeded: Cell<bool>,
    broken: Cell<bool>,
    /// The permission under which it passes, if this proxy decided. Kept alive as long as the body.
    permission: Option<Rc<dyn Permission>>,
}

/// A permission that can end while a body passes under it.
pub(crate) trait Permission: Debug {
    /// The signal that ends it.
    fn revocation(&self) -> &Revocation;
}

impl BodyProgress {
    pub(crate) fn new(limit: Option<u64>, permission: Option<Rc<dyn Permission>>) -> Rc<Self> {
        Rc::new(Self {
            bytes: Cell::new(0),
            limit: limit.unwrap_or(u64::MAX),
            exceeded: Cell::new(false),
            broken: Cell::new(false),
            permission,
        })
    }

    /// The limit, if the body exceeded it.
    pub(crate) fn exceeded_limit(&self) -> Option<u64> {
        self.exceeded.get().then_some(self.limit)
    }

    /// Whether the caller aborted or violated the framing.
    pub(crate) fn broken(&self) -> bool {
        self.broken.get()
    }
}

/// A request's body on its way to an upstream.
#[derive(Debug)]
pub(crate) enum RequestBody {
    /// None.
    Empty,
    /// Buffered, because a body rule requires it.
    Whole(Option<Bytes>),
    /// Streamed.
    Stream(Incoming, Rc<BodyProgress>),
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
            Self::Stream(incoming, progress) => {
                let revocation = progress.permission.as_deref().map(Permission::revocation);
                let polled = poll_permitted(revocation, cx, |cx| Pin::new(incoming).poll_frame(cx));
                let Some(polled) = polled else {
                    return Poll::Ready(Some(Err(BodyError::Revoked)));
                };
                let frame = match ready!(polled) {
                    None => return Poll::Ready(None),
                    Some(Err(error)) => {
                        progress.broken.set(true);
                        return Poll::Ready(Some(Err(error.into())));
                    }
                    Some(Ok(frame)) => frame,
                };
                if let Some(data) = frame.data_ref() {
                    let bytes = progress.bytes.get() + data.len() as u64;
                    progress.bytes.set(bytes);
                    if bytes > progress.limit {
                        progress.exceeded.set(true);
                        return Poll::Ready(Some(Err(BodyError::TooLarge(progress.limit))));
                    }
                }
                // The guard has the same limits for HTTP/1.
                if frame.trailers_ref().is_some_and(exceed_limits) {
                    progress.broken.set(true);
                    return Poll::Ready(Some(Err(BodyError::Trailers)));
                }
                Poll::Ready(Some(Ok(filter_trailers(frame))))
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

/// Polls under a permission, and wakes the task when it is revoked. `None` when it was revoked.
pub(crate) fn poll_permitted<T>(
    revocation: Option<&Revocation>,
    cx: &mut Context<'_>,
    poll: impl FnOnce(&mut Context<'_>) -> Poll<T>,
) -> Option<Poll<T>> {
    let Some(revocation) = revocation else {
        return Some(poll(cx));
    };
    if revocation.is_revoked() {
        return None;
    }
    let polled = poll(cx);
    if polled.is_pending() {
        revocation.wake(cx);
    }
    Some(polled)
}

fn exceed_limits(trailers: &HeaderMap) -> bool {
    let sizes = trailers
        .iter()
        .map(|(name, value)| name.as_str().len() + ": ".len() + value.len());
    trailers.len() > MAX_TRAILER_FIELDS || sizes.sum::<usize>() > MAX_TRAILERS
}

/// Removes trailers that the decision depends on: they arrive after it.
pub(crate) fn filter_trailers(frame: Frame<Bytes>) -> Frame<Bytes> {
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
