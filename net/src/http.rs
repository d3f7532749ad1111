//! Bounded HTTP/1.1 for clients without a certificate: probes, scrapers, the API server.

mod response_body;

use std::{collections::VecDeque, convert::Infallible, fmt::Debug, sync::Arc, time::Duration};

use axum::{Router, body::Body, serve::Listener};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
};
use tokio::{
    sync::Notify,
    task::AbortHandle,
    time::{Instant, timeout},
};
use tower::ServiceExt as _;

use self::response_body::ResponseBody;

/// Bounds on what clients can hold of one listener.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Open connections. Default: 128. A new connection beyond the limit closes the oldest one.
    pub connections: usize,
    /// From the start of a connection, or the end of a response, to the end of the next request head. Default: 30 seconds.
    pub head: Duration,
    /// From the start of a response to its end. Default: 30 seconds. A client that does not read it in time loses the
    /// connection.
    pub answer: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 128,
            head: Duration::from_secs(30),
            answer: Duration::from_secs(30),
        }
    }
}

/// Maximum size of a request head in bytes. Probes and scrapers send a few hundred.
const HEAD: usize = 16 << 10;
/// Minimum time between two log events about a full listener.
const LOG_EVERY: Duration = Duration::from_secs(60);
/// How long the shutdown waits for responses in progress.
const DRAIN: Duration = Duration::from_secs(10);

/// Serves HTTP/1.1 until `shutdown`, then finishes responses in progress for at most 10 seconds. Calls `routes` for each
/// connection.
pub async fn serve<L>(
    mut listener: L,
    limits: Limits,
    routes: impl Fn(&L::Io) -> Router,
    shutdown: impl Future<Output = ()>,
) where
    L: Listener,
    L::Addr: Debug,
{
    // Oldest first.
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
    let mut logged: Option<Instant> = None;
    let graceful = GracefulShutdown::new();
    tokio::pin!(shutdown);
    loop {
        let (stream, from) = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut shutdown => break,
        };
        open.retain(|connection| !connection.is_finished());
        if open.len() >= limits.connections
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
            if logged.is_none_or(|at| at.elapsed() >= LOG_EVERY) {
                logged = Some(Instant::now());
                tracing::warn!(
                    listener = listener.local_addr().ok().map(tracing::field::debug),
                    newest = ?from,
                    limit = limits.connections,
                    "connections.limit_reached"
                );
            }
        }
        let routes = routes(&stream);
        let late = Arc::new(Notify::new());
        let timed_out = Arc::clone(&late);
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let (routes, late) = (routes.clone(), Arc::clone(&timed_out));
            async move {
                let answer = routes.oneshot(request).await?;
                let whole = |body: Body| ResponseBody::new(body, limits.answer, late);
                Ok::<_, Infallible>(answer.map(whole))
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head)
            .max_buf_size(HEAD)
            .serve_connection(TokioIo::new(stream), service);
        let connection = graceful.watch(connection);
        let served = tokio::spawn(async move {
            tokio::select! {
                ended = connection => if let Err(error) = ended {
                    tracing::debug!(%error, "connection.failed");
                },
                () = late.notified() => tracing::debug!("response.timed_out"),
            }
        });
        open.push_back(served.abort_handle());
    }
    drop(listener);
    if timeout(DRAIN, graceful.shutdown()).await.is_err() {
        open.iter().for_each(AbortHandle::abort);
    }
}

#[cfg(test)]
mod tests;
