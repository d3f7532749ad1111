//! Serves HTTP on a connection, the same way in every direction: with the guard, limits and a graceful drain.

use std::{cell::Cell, convert::Infallible, pin::Pin, rc::Rc, sync::Arc, time::Duration};

use http::{Request, Response, Version};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::peer::Peer;
use crate::{
    protocol::{
        denial::Denial,
        http1::{Guard, GuardedStream},
        http2::{GuardedFrames, LocalExecutor},
    },
    request::{
        response_body::ResponseBody,
        worker_context::{InFlightGuard, WorkerContext},
    },
    telemetry::metrics::{Direction, Handshake, Transport},
};

/// The first bytes of HTTP/2 (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Accepts TLS as a server, within the time limit.
pub(crate) async fn handshake(
    local: &Rc<WorkerContext>,
    direction: Direction,
    config: Arc<ServerConfig>,
    stream: TcpStream,
) -> Option<TlsStream<TcpStream>> {
    let limits = &local.shared.limits;
    let one = InFlightGuard::within(
        Rc::clone(local),
        |local| &local.handshakes,
        limits.handshakes,
    );
    let Some(_one) = one else {
        local.metrics.handshakes.inc(direction, Handshake::Refused);
        return None;
    };
    let accepting = TlsAcceptor::from(config).accept(stream);
    let (stream, result) = match timeout(limits.handshake_timeout, accepting).await {
        Ok(Ok(stream)) => (Some(stream), Handshake::Done),
        Ok(Err(error)) => {
            tracing::debug!(%error, "downstream.handshake_failed");
            (None, Handshake::Refused)
        }
        Err(_) => (None, Handshake::Timeout),
    };
    local.metrics.handshakes.inc(direction, result);
    stream
}

/// A stream with the bytes that were read from it to detect the protocol.
#[derive(Debug)]
pub(crate) struct PrefixedStream<T> {
    inner: T,
    prefix: Vec<u8>,
}

impl<T> PrefixedStream<T> {
    /// A stream whose protocol is already known.
    pub(crate) fn new(inner: T) -> Self {
        Self {
            inner,
            prefix: Vec::new(),
        }
    }
}

impl<T: AsyncRead + Unpin> PrefixedStream<T> {
    /// Reads as much as is needed to distinguish HTTP/2 from HTTP/1. `None` when it does not arrive `within` this
    /// time.
    async fn sniff(inner: T, within: Duration) -> Option<(Self, bool)> {
        let mut this = Self {
            inner,
            prefix: Vec::new(),
        };
        let h2 = timeout(within, this.speaks_h2()).await.ok()??;
        Some((this, h2))
    }

    async fn speaks_h2(&mut self) -> Option<bool> {
        self.prefix.reserve(PREFACE.len());
        loop {
            if !PREFACE.starts_with(&self.prefix) {
                return Some(false);
            }
            // `PRI` is not a method that is served over HTTP/1.
            if self.prefix.len() >= PREFACE.len() {
                return Some(true);
            }
            let mut some = [0_u8; PREFACE.len()];
            let room = PREFACE.len() - self.prefix.len();
            let read = self.inner.read(some.get_mut(..room)?).await.ok()?;
            if read == 0 {
                return None;
            }
            self.prefix.extend_from_slice(some.get(..read)?);
        }
    }
}

/// A request handler. The denial is set when the guard already refused the request.
pub(crate) trait Serve<P>:
    Fn(Rc<P>, Request<Incoming>, Option<Denial>) -> Self::ResponseFuture + Clone + 'static
{
    type ResponseFuture: Future<Output = Result<Response<ResponseBody>, Infallible>> + 'static;
}

impl<P, F, A> Serve<P> for F
where
    F: Fn(Rc<P>, Request<Incoming>, Option<Denial>) -> A + Clone + 'static,
    A: Future<Output = Result<Response<ResponseBody>, Infallible>> + 'static,
{
    type ResponseFuture = A;
}

/// Serves HTTP on a connection without TLS; the first bytes determine the version.
pub(crate) async fn serve_plain<S: Serve<Peer>>(
    local: &Rc<WorkerContext>,
    stream: TcpStream,
    peer: Rc<Peer>,
    serve: S,
) {
    let idle_timeout = local.shared.limits.idle_timeout;
    let Some((stream, h2)) = PrefixedStream::sniff(stream, idle_timeout).await else {
        return;
    };
    if h2 {
        serve_h2(local, stream, Transport::Plain, peer, serve).await;
    } else {
        serve_http1(local, stream, Transport::Plain, peer, serve).await;
    }
}

/// Serves HTTP/2.
pub(crate) async fn serve_h2<T, S>(
    local: &Rc<WorkerContext>,
    stream: PrefixedStream<T>,
    transport: Transport,
    peer: Rc<Peer>,
    serve: S,
) where
    T: AsyncRead + AsyncWrite + Unpin + 'static,
    S: Serve<Peer>,
{
    let _open = OpenConnection::new(local, peer.direction, transport);
    let open_requests = Rc::clone(&peer.open_requests);
    let service = service_fn(move |request| serve(Rc::clone(&peer), request, None));
    let limits = &local.shared.limits;
    let connection = http2::Builder::new(LocalExecutor)
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.h2_streams)
        .max_header_list_size(64 << 10)
        .initial_stream_window_size(limits.h2_stream_window)
        .initial_connection_window_size(limits.h2_connection_window)
        .max_pending_accept_reset_streams(limits.h2_pending_resets)
        .max_local_error_reset_streams(limits.h2_forced_resets)
        .enable_connect_protocol()
        .serve_connection(
            TokioIo::new(GuardedFrames::new(stream.inner, stream.prefix, limits)),
            service,
        );
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        () = drive(local, connection.as_mut()) => return,
        () = open_requests.idle_for(limits.idle_timeout) => {}
    }
    connection.as_mut().graceful_shutdown();
    // A request that crosses the GOAWAY is served. A peer that does not react to it is not waited for.
    tokio::select! {
        () = drive(local, connection) => {}
        () = open_requests.idle_for(limits.idle_timeout) => {}
    }
}

/// Serves HTTP/1.1, with the guard in front.
pub(crate) async fn serve_http1<T, S>(
    local: &Rc<WorkerContext>,
    stream: PrefixedStream<T>,
    transport: Transport,
    peer: Rc<Peer>,
    serve: S,
) where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Serve<Peer>,
{
    let _open = OpenConnection::new(local, peer.direction, transport);
    let limits = &local.shared.limits;
    let (io, guard) =
        GuardedStream::with_head_timeout(stream.inner, stream.prefix, limits.head_timeout);
    let requests = Cell::new(0_u32);
    let service = service_fn(move |request| {
        let request_number = requests.get() + 1;
        requests.set(request_number);
        let broken = guard.violation(request_number).map(Denial::Framing);
        let (response, guard) = (serve(Rc::clone(&peer), request, broken), Arc::clone(&guard));
        async move { report_response(response, &guard, request_number).await }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // The guard has a shorter limit for a started head; this one is for idle connections.
        .header_read_timeout(limits.idle_timeout)
        .max_headers(crate::protocol::http1::MAX_FIELDS + 8)
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades();
    drive(local, std::pin::pin!(connection)).await;
}

/// Reports the response to the guard: the following bytes are HTTP, or after a switch no longer.
async fn report_response(
    response: impl Future<Output = Result<Response<ResponseBody>, Infallible>>,
    guard: &Guard,
    request: u32,
) -> Result<Response<ResponseBody>, Infallible> {
    let mut response = response.await?;
    *response.version_mut() = Version::HTTP_11;
    guard.answered(
        request,
        response.status() == http::StatusCode::SWITCHING_PROTOCOLS,
    );
    Ok(response)
}

/// A hyper connection that can shut down gracefully.
trait GracefulShutdown: Future {
    fn drain(self: Pin<&mut Self>);
}

impl<I, B, S, E> GracefulShutdown for http2::Connection<I, S, E>
where
    S: hyper::service::HttpService<Incoming, ResBody = B>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
    B: hyper::body::Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    E: hyper::rt::bounds::Http2ServerConnExec<S::Future, B>,
{
    fn drain(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<I, B, S> GracefulShutdown for http1::UpgradeableConnection<I, S>
where
    S: hyper::service::HttpService<Incoming, ResBody = B>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    B: hyper::body::Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn drain(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

/// Runs a connection to its end; once the drain starts, to the end of its open requests.
async fn drive<E: std::fmt::Display>(
    local: &Rc<WorkerContext>,
    mut connection: Pin<&mut impl GracefulShutdown<Output = Result<(), E>>>,
) {
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = local.shutdown.drain.cancelled() => {
            connection.as_mut().drain();
            connection.as_mut().await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "downstream.connection_failed");
    }
}

/// Counts a connection for as long as it is open.
#[derive(Debug)]
pub(crate) struct OpenConnection {
    local: Rc<WorkerContext>,
    direction: Direction,
}

impl OpenConnection {
    pub(crate) fn new(
        local: &Rc<WorkerContext>,
        direction: Direction,
        transport: Transport,
    ) -> Self {
        local.metrics.connections.inc(direction, transport);
        local.metrics.open_connections.add(direction, 1);
        Self {
            local: Rc::clone(local),
            direction,
        }
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.local.metrics.open_connections.add(self.direction, -1);
    }
}
