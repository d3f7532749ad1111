//! The requests that programs have received.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{HeaderMap, Method, Version};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::sync::watch;

/// A request as a program received it.
#[derive(Debug, Clone)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// Path and query.
    pub target: String,
    /// The HTTP version.
    pub version: Version,
    /// The headers.
    pub headers: HeaderMap,
    /// Whether the body has arrived, for [`App::http`](super::App::http).
    pub body: BodyState,
}

/// How much of a request's body a program has received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyState {
    /// More may follow, or the program does not record it.
    Open,
    /// All of it.
    Complete,
    /// It broke off before its end.
    Broken,
}

/// The requests that a program has received.
#[derive(Debug, Clone, Default)]
pub(super) struct RequestLog(watch::Sender<Vec<Request>>);

impl RequestLog {
    /// Records a request. Returns its number.
    pub(super) fn add(&self, request: Request) -> usize {
        let mut number = 0;
        self.0.send_modify(|all| {
            number = all.len();
            all.push(request);
        });
        number
    }

    /// Records how the body of a request has ended. Only the first end counts.
    fn body_ended(&self, number: usize, body: BodyState) {
        self.0.send_modify(|all| {
            if let Some(request) = all.get_mut(number)
                && request.body == BodyState::Open
            {
                request.body = body;
            }
        });
    }

    /// All requests.
    pub(super) fn all(&self) -> Vec<Request> {
        self.0.borrow().clone()
    }

    /// All requests, as soon as there are more than `known`.
    pub(super) async fn more_than(&self, known: usize) -> Vec<Request> {
        let mut all = self.0.subscribe();
        let more = all.wait_for(|all| all.len() > known).await;
        more.expect("the sender is in `self`").clone()
    }
}

/// The body of a recorded request, which records its own end.
#[derive(Debug)]
pub(super) struct RecordedBody {
    body: Incoming,
    log: RequestLog,
    number: usize,
}

impl RecordedBody {
    pub(super) fn new(body: Incoming, log: RequestLog, number: usize) -> Self {
        let this = Self { body, log, number };
        this.record_end();
        this
    }

    fn record_end(&self) {
        if self.body.is_end_stream() {
            self.log.body_ended(self.number, BodyState::Complete);
        }
    }
}

impl Body for RecordedBody {
    type Data = bytes::Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<hyper::Result<Frame<Self::Data>>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        match &frame {
            None => this.log.body_ended(this.number, BodyState::Complete),
            Some(Ok(_)) => this.record_end(),
            Some(Err(_)) => this.log.body_ended(this.number, BodyState::Broken),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for RecordedBody {
    fn drop(&mut self) {
        // The server drops the body when the connection ends first.
        self.log.body_ended(self.number, BodyState::Broken);
    }
}
