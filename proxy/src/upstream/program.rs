//! Connections to the local program or any other plain HTTP server, in the caller's HTTP version.

use std::{cell::RefCell, collections::HashMap, net::SocketAddr, rc::Rc};

use http::{Method, Request, Response};
use hyper::body::{Body as _, Incoming};

use super::{body::RequestBody, dial, h2, http1, pool_guard::PoolGuard};
use crate::{
    limits::Limits,
    protocol::{
        address_claims::Claims,
        denial::{Denial, Upstream},
        peer_header::Proto,
    },
    telemetry::metrics::worker::WorkerMetrics,
};

/// Connections to programs.
#[derive(Debug)]
pub(crate) struct Programs {
    limits: Limits,
    own: Claims,
    http1: Rc<http1::Pool>,
    h2: RefCell<HashMap<SocketAddr, Rc<h2::Group>, foldhash::fast::RandomState>>,
}

/// Maximum attempts. A terminating program may reset two connections that it did not accept; a third is refused.
const MAX_ATTEMPTS: usize = 3;

impl Programs {
    /// No connections yet.
    pub(crate) fn new(limits: Limits, own: Claims) -> Self {
        Self {
            limits,
            http1: Rc::new(http1::Pool::new(limits, own.clone())),
            own,
            h2: RefCell::default(),
        }
    }

    /// Sends a request and waits for the head of the response.
    ///
    /// # Errors
    /// When there is no response.
    pub(crate) async fn send(
        &self,
        address: SocketAddr,
        proto: Proto,
        request: Request<RequestBody>,
        metrics: &WorkerMetrics,
    ) -> Result<(Response<Incoming>, PoolGuard), Denial> {
        match proto {
            Proto::H2 => self.send_h2(address, request, metrics).await,
            Proto::Http1 | Proto::Tcp => self.send_http1(address, request, metrics).await,
        }
    }

    async fn send_http1(
        &self,
        address: SocketAddr,
        request: Request<RequestBody>,
        metrics: &WorkerMetrics,
    ) -> Result<(Response<Incoming>, PoolGuard), Denial> {
        let mut connection = self.http1.borrow(address, metrics).await?;
        // A server may close an idle connection just when it is used (RFC 9112 §9.3.1), and a terminating one resets
        // those that it did not accept. A repeatable request is then sent again on a new connection; any other request
        // only if nothing of it was sent.
        let again = repeatable(&request).then(|| copy_head(&request));
        let (mut request, mut left) = (request, MAX_ATTEMPTS);
        loop {
            left -= 1;
            let mut failed = match connection.send(request).await {
                Ok(response) => return Ok((response, PoolGuard::Http1(connection))),
                Err(failed) => failed,
            };
            connection.discard();
            request = match (failed.take_message(), &again) {
                (Some(unsent), _) if left > 0 => unsent,
                (None, Some(again)) if left > 0 && !failed.error().is_parse() => copy_head(again),
                _ => return Err(upstream_error(failed.error()).into()),
            };
            connection = self.http1.open(address, metrics).await?;
        }
    }

    async fn send_h2(
        &self,
        address: SocketAddr,
        request: Request<RequestBody>,
        metrics: &WorkerMetrics,
    ) -> Result<(Response<Incoming>, PoolGuard), Denial> {
        let limits = &self.limits;
        let group = Rc::clone(
            self.h2
                .borrow_mut()
                .entry(address)
                .or_insert_with(|| Rc::new(h2::Group::new(*limits))),
        );
        let mut request = request;
        for _ in 0..2 {
            let dial = async || {
                h2::begin(
                    dial::plain(address, &self.own, limits, metrics).await?,
                    std::future::pending(),
                    limits,
                )
                .await
            };
            let lease = group.lease(None, dial).await?;
            match lease.send(request).await {
                Ok(response) => return Ok((response, PoolGuard::H2(lease))),
                Err(mut failed) => match failed.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(upstream_error(failed.error()).into()),
                },
            }
        }
        Err(Upstream::Reset.into())
    }

    /// Removes connections that are closed or idle too long.
    pub(crate) fn tidy(&self) {
        self.http1.tidy();
        self.h2.borrow_mut().retain(|_, group| {
            group.tidy(None);
            !group.is_empty() || Rc::strong_count(group) > 1
        });
    }
}

/// Whether a request may be sent twice (RFC 9110 §9.2.2), and can be, because it has no body.
fn repeatable(request: &Request<RequestBody>) -> bool {
    request.body().is_end_stream()
        && matches!(
            *request.method(),
            Method::GET | Method::HEAD | Method::OPTIONS
        )
}

/// Copies everything but the body.
pub(super) fn copy_head(request: &Request<RequestBody>) -> Request<RequestBody> {
    let mut copy = Request::new(RequestBody::Empty);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    copy
}

/// The cause, as far as hyper's error shows it.
pub(crate) fn upstream_error(error: &hyper::Error) -> Upstream {
    if error.is_parse() {
        Upstream::Protocol
    } else if error.is_timeout() {
        Upstream::Timeout
    } else {
        Upstream::Reset
    }
}
