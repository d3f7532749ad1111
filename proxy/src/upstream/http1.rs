//! HTTP/1 connections to one address, one request at a time on each.

use std::{cell::RefCell, collections::HashMap, net::SocketAddr, rc::Rc};

use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::{
        TrySendError,
        http1::{Builder, SendRequest},
    },
};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use super::{body::RequestBody, dial};
use crate::{
    limits::Limits,
    protocol::{address_claims::Claims, denial::Upstream},
    telemetry::metrics::worker::WorkerMetrics,
};

/// Idle connections by address; the most recently used is last.
#[derive(Debug)]
pub(crate) struct Pool {
    limits: Limits,
    own: Claims,
    idle: RefCell<HashMap<SocketAddr, Vec<Idle>, foldhash::fast::RandomState>>,
}

#[derive(Debug)]
struct Idle {
    sender: SendRequest<RequestBody>,
    since: Instant,
}

/// A connection that serves one request.
#[derive(Debug)]
pub(crate) struct PooledConnection {
    pool: Rc<Pool>,
    address: SocketAddr,
    sender: Option<SendRequest<RequestBody>>,
}

impl Pool {
    /// No connections yet.
    pub(crate) fn new(limits: Limits, own: Claims) -> Self {
        Self {
            limits,
            own,
            idle: RefCell::default(),
        }
    }

    /// An idle connection, or a new one.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub(crate) async fn borrow(
        self: &Rc<Self>,
        address: SocketAddr,
        metrics: &WorkerMetrics,
    ) -> Result<PooledConnection, Upstream> {
        if let Some(sender) = self.take(address) {
            return Ok(self.pooled(address, sender));
        }
        self.open(address, metrics).await
    }

    /// A new connection.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub(crate) async fn open(
        self: &Rc<Self>,
        address: SocketAddr,
        metrics: &WorkerMetrics,
    ) -> Result<PooledConnection, Upstream> {
        let stream = dial::plain(address, &self.own, &self.limits, metrics).await?;
        let (sender, connection) = Builder::new()
            .max_headers(256)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|_| Upstream::Protocol)?;
        tokio::task::spawn_local(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "upstream.connection_error");
            }
        });
        Ok(self.pooled(address, sender))
    }

    fn pooled(
        self: &Rc<Self>,
        address: SocketAddr,
        sender: SendRequest<RequestBody>,
    ) -> PooledConnection {
        PooledConnection {
            pool: Rc::clone(self),
            address,
            sender: Some(sender),
        }
    }

    fn take(&self, address: SocketAddr) -> Option<SendRequest<RequestBody>> {
        let mut pools = self.idle.borrow_mut();
        let idle = pools.get_mut(&address)?;
        let mut busy = Vec::new();
        let mut found = None;
        while let Some(one) = idle.pop() {
            if one.sender.is_ready() {
                found = Some(one.sender);
                break;
            }
            // Its last request body may still be in transit.
            if !one.sender.is_closed() {
                busy.push(one);
            }
        }
        idle.extend(busy);
        found
    }

    fn release(&self, address: SocketAddr, sender: SendRequest<RequestBody>) {
        if sender.is_closed() {
            return;
        }
        let mut pools = self.idle.borrow_mut();
        let idle = pools.entry(address).or_default();
        if idle.len() < self.limits.upstream_idle_connections {
            idle.push(Idle {
                sender,
                since: Instant::now(),
            });
        }
    }

    /// Removes connections that are closed or idle too long.
    pub(crate) fn tidy(&self) {
        let idle_timeout = self.limits.upstream_idle_timeout;
        self.idle.borrow_mut().retain(|_, idle| {
            idle.retain(|one| !one.sender.is_closed() && one.since.elapsed() < idle_timeout);
            idle.shrink_to_fit();
            !idle.is_empty()
        });
    }
}

impl PooledConnection {
    /// Sends a request. The error returns it if nothing was sent.
    ///
    /// # Errors
    /// The error of hyper.
    pub(crate) async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<RequestBody>>> {
        match &mut self.sender {
            Some(sender) => sender.try_send_request(request).await,
            // INVARIANT: only `discard` removes the sender, and nothing is sent after it.
            None => std::future::pending().await,
        }
    }

    /// Prevents reuse of the connection.
    pub(crate) fn discard(&mut self) {
        self.sender = None;
    }
}

impl Drop for PooledConnection {
    fn drop(&mut self) {
        if let Some(sender) = self.sender.take() {
            self.pool.release(self.address, sender);
        }
    }
}
