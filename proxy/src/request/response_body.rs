//! Response bodies: streamed, counted, never buffered.

use std::{
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::{exchange::Exchange, open_permit::OpenPermit};
use crate::upstream::{
    PoolGuard,
    body::{BodyError, poll_permitted},
};

/// The body of a response to the caller. When it ends, or is dropped, the request is finished.
#[derive(Debug)]
pub(crate) struct ResponseBody {
    source: Source,
    exchange: Option<Box<Exchange>>,
    pooled: Option<PoolGuard>,
    /// The permit under which it passes, if this proxy decided.
    open_permit: Option<Rc<OpenPermit>>,
}

#[derive(Debug)]
enum Source {
    Generated(Option<Bytes>),
    Upstream(Incoming),
}

impl ResponseBody {
    /// A response that the proxy generated.
    pub(crate) fn generated(bytes: Bytes) -> Self {
        let source = Source::Generated(Some(bytes).filter(|bytes| !bytes.is_empty()));
        Self {
            source,
            exchange: None,
            pooled: None,
            open_permit: None,
        }
    }

    /// An upstream's response, which returns `pooled` to its pool when it has passed.
    pub(crate) fn upstream(
        incoming: Incoming,
        pooled: Option<PoolGuard>,
        open_permit: Option<Rc<OpenPermit>>,
    ) -> Self {
        Self {
            source: Source::Upstream(incoming),
            exchange: None,
            pooled,
            open_permit,
        }
    }

    /// Ties the end of the request to the end of this body.
    pub(crate) fn with_exchange(mut self, exchange: Box<Exchange>) -> Self {
        if self.is_end_stream() {
            exchange.conclude(false);
            self.pooled = None;
        } else {
            self.exchange = Some(exchange);
        }
        self
    }

    fn conclude(&mut self, aborted: bool) {
        if let Some(exchange) = self.exchange.take() {
            exchange.conclude(aborted);
        }
        self.pooled = None;
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        // hyper does not poll again once all of `Content-Length` has passed.
        let aborted = !self.is_end_stream();
        if aborted && let Some(pooled) = &mut self.pooled {
            pooled.discard();
        }
        self.conclude(aborted);
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let frame = match &mut this.source {
            Source::Generated(bytes) => bytes.take().map(|bytes| Ok(Frame::data(bytes))),
            Source::Upstream(incoming) => {
                let revocation = this
                    .open_permit
                    .as_deref()
                    .map(|open_permit| &open_permit.revocation);
                let polled = poll_permitted(revocation, cx, |cx| Pin::new(incoming).poll_frame(cx));
                let Some(polled) = polled else {
                    if let Some(pooled) = &mut this.pooled {
                        pooled.discard();
                    }
                    let why = this.open_permit.as_ref().and_then(|one| one.denial());
                    if let (Some(exchange), Some(denial)) = (&mut this.exchange, why) {
                        exchange.end_with(denial);
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
                if let Some(pooled) = &mut this.pooled {
                    pooled.discard();
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
            Source::Generated(bytes) => bytes.is_none(),
            Source::Upstream(incoming) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Generated(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64)
            }
            Source::Upstream(incoming) => incoming.size_hint(),
        }
    }
}
