//! A request on its way through the checks.

use std::{net::SocketAddr, rc::Rc};

use http::{Request, request::Parts};
use hyper::body::Incoming;
use jiff::Timestamp;
use merlon_policy::{authn::User, validate::RouteMatch};

use super::{
    exchange::Exchange,
    worker_context::{CurrentSnapshot, WorkerContext},
};
use crate::{
    protocol::{
        headers::HOPS, peer_header::Proto, request_head::ParsedHead, tls_session::TlsSession,
        websocket,
    },
    upstream::body::{BodyProgress, RequestBody},
};

/// A request and all that is known about it, at every stage.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) local: Rc<WorkerContext>,
    /// The snapshot for all decisions about this request.
    pub(crate) current: Rc<CurrentSnapshot>,
    pub(crate) address: SocketAddr,
    /// The connection's TLS.
    pub(crate) session: Option<Rc<TlsSession>>,
    pub(crate) now: Timestamp,
    pub(crate) clock: std::time::Instant,
    pub(crate) head: Parts,
    pub(crate) parsed: ParsedHead,
    pub(crate) body: Option<Incoming>,
    /// Set when the other proxy only asks whether the request would be permitted, with a body of this length (if
    /// known).
    pub(crate) question: Option<Option<u64>>,
    /// Whether it is gRPC by its content type; refusals are then gRPC statuses.
    pub(crate) grpc: bool,
    /// The protocol of the caller's program.
    pub(crate) proto: Proto,
    pub(crate) user: Option<Rc<User>>,
    pub(crate) route: RouteMatch,
    pub(crate) exchange: Box<Exchange>,
}

impl Call {
    /// The method as policies see it: a WebSocket is requested with GET, also over HTTP/2 (RFC 8441 §5).
    pub(crate) fn method(&self) -> &str {
        if self.parsed.websocket {
            "GET"
        } else {
            self.head.method.as_str()
        }
    }

    /// The body as it arrives.
    pub(crate) fn stream(&mut self) -> RequestBody {
        match self.body.take() {
            None => RequestBody::Empty,
            Some(incoming) => {
                let progress = BodyProgress::new(None, None);
                self.exchange.progress = Some(Rc::clone(&progress));
                RequestBody::Stream(incoming, progress)
            }
        }
    }

    /// The request for the next connection, with the whole head, and the upgrade that it requests.
    pub(crate) fn outgoing(
        &mut self,
        body: RequestBody,
    ) -> (Request<RequestBody>, Option<websocket::UpgradeRequest>) {
        let upgrade = if self.parsed.websocket {
            websocket::take(&mut self.head)
        } else {
            None
        };
        let mut request = Request::new(body);
        std::mem::swap(request.headers_mut(), &mut self.head.headers);
        let hops = self.parsed.hops.saturating_add(1);
        request.headers_mut().insert(HOPS, u16::from(hops).into());
        *request.method_mut() = self.head.method.clone();
        *request.uri_mut() = self.head.uri.clone();
        (request, upgrade)
    }
}
