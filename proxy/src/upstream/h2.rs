//! HTTP/2 connections to one address: a second one is opened only when the streams of the first are used up. Fewer and
//! fuller connections cost less.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
};

use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::{
        TrySendError,
        http2::{Builder, SendRequest},
    },
};
use hyper_util::rt::{TokioIo, TokioTimer};
use merlon_certs::MeshTls;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Mutex,
    time::Instant,
};

use super::body::RequestBody;
use crate::{
    limits::Limits,
    protocol::{denial::Upstream, http2::LocalExecutor},
};

/// The connections to one address.
#[derive(Debug)]
pub(crate) struct Group {
    limits: Limits,
    connections: RefCell<Vec<Rc<Connection>>>,
    dialing: Mutex<()>,
}

#[derive(Debug)]
struct Connection {
    sender: RefCell<SendRequest<RequestBody>>,
    streams: Cell<usize>,
    used: Cell<Instant>,
    /// The identity that it was opened with. After a renewal it takes no new requests and closes after its last stream.
    identity: Option<Arc<MeshTls>>,
}

/// One stream of a connection.
#[derive(Debug)]
pub(crate) struct Lease(Rc<Connection>);

impl Group {
    /// No connections yet.
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            connections: RefCell::default(),
            dialing: Mutex::default(),
        }
    }

    /// Reserves a stream on an open connection, or on a new one that `dial` opens. Requests that need a new one at the
    /// same time share it.
    ///
    /// # Errors
    /// The error of `dial`.
    pub(crate) async fn lease<D>(
        &self,
        identity: Option<&Arc<MeshTls>>,
        dial: D,
    ) -> Result<Lease, Upstream>
    where
        D: AsyncFnOnce() -> Result<SendRequest<RequestBody>, Upstream>,
    {
        if let Some(lease) = self.find(identity) {
            return Ok(lease);
        }
        let _one_at_a_time = self.dialing.lock().await;
        if let Some(lease) = self.find(identity) {
            return Ok(lease);
        }
        let connection = Rc::new(Connection {
            sender: RefCell::new(dial().await?),
            streams: Cell::new(0),
            used: Cell::new(Instant::now()),
            identity: identity.cloned(),
        });
        self.connections.borrow_mut().push(Rc::clone(&connection));
        Ok(Lease::on(&connection))
    }

    fn find(&self, identity: Option<&Arc<MeshTls>>) -> Option<Lease> {
        let connections = self.connections.borrow();
        let fits = |connection: &&Rc<Connection>| {
            connection.streams.get() < self.limits.upstream_streams
                && connection.is_current(identity)
                && connection.sender.borrow().is_ready()
        };
        connections.iter().find(fits).map(Lease::on)
    }

    /// Removes connections that are closed, idle too long, or opened with an earlier certificate.
    pub(crate) fn tidy(&self, identity: Option<&Arc<MeshTls>>) {
        let idle_timeout = self.limits.upstream_idle_timeout;
        self.connections.borrow_mut().retain(|connection| {
            !connection.sender.borrow().is_closed()
                && connection.is_current(identity)
                && (connection.streams.get() > 0 || connection.used.get().elapsed() < idle_timeout)
        });
    }

    /// Streams open on all connections.
    pub(crate) fn streams(&self) -> usize {
        self.connections
            .borrow()
            .iter()
            .map(|connection| connection.streams.get())
            .sum()
    }

    /// Whether no connection is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.connections.borrow().is_empty() && self.dialing.try_lock().is_ok()
    }
}

impl Connection {
    fn is_current(&self, identity: Option<&Arc<MeshTls>>) -> bool {
        match (&self.identity, identity) {
            (Some(own), Some(now)) => Arc::ptr_eq(own, now),
            (None, None) => true,
            _ => false,
        }
    }
}

impl Lease {
    fn on(connection: &Rc<Connection>) -> Self {
        connection.streams.set(connection.streams.get() + 1);
        Self(Rc::clone(connection))
    }

    /// Sends a request. The error returns it if nothing was sent.
    pub(crate) fn send(
        &self,
        request: Request<RequestBody>,
    ) -> impl Future<Output = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>> + use<>
    {
        self.0.sender.borrow_mut().try_send_request(request)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get().saturating_sub(1));
        self.0.used.set(Instant::now());
    }
}

/// Starts HTTP/2 as a client on an open stream.
///
/// `until` resolves when the connection must close, even with open streams.
///
/// # Errors
/// [`Upstream::Protocol`].
pub(crate) async fn begin<T>(
    stream: T,
    until: impl Future<Output = ()> + 'static,
    limits: &Limits,
) -> Result<SendRequest<RequestBody>, Upstream>
where
    T: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let (sender, connection) = Builder::new(LocalExecutor)
        .timer(TokioTimer::new())
        .initial_stream_window_size(limits.h2_stream_window)
        .initial_connection_window_size(limits.h2_connection_window)
        .max_header_list_size(64 << 10)
        .keep_alive_interval(limits.upstream_keep_alive)
        .keep_alive_timeout(limits.upstream_keep_alive)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|_| Upstream::Protocol)?;
    tokio::task::spawn_local(async move {
        tokio::select! {
            ended = connection => if let Err(error) = ended {
                tracing::debug!(%error, "upstream.connection_error");
            },
            () = until => {}
        }
    });
    Ok(sender)
}
