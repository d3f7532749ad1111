//! The listener for the API server.

use std::{io, net::SocketAddr, sync::Arc};

use axum::{
    Router,
    http::{HeaderValue, header},
    middleware,
    response::Response,
};
use merlon_net::{
    handshakes::{self, Accepted},
    http,
};
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::{limits::WebhookLimits, telemetry::metrics::Metrics};

/// Serves until `shutdown`, then until `unlisted`, and for the time `linger` afterwards. Connections wait until there is a
/// certificate.
pub(crate) async fn serve(
    listeners: Vec<TcpListener>,
    limits: WebhookLimits,
    tls_config: watch::Receiver<Option<Arc<ServerConfig>>>,
    routes: Router,
    metrics: Metrics,
    (shutdown, unlisted): (CancellationToken, CancellationToken),
) {
    let mut addresses = listeners.iter().filter_map(|one| one.local_addr().ok());
    let Some(address) = addresses.next() else {
        return;
    };
    let (connections, incoming) = mpsc::channel(64);
    let handshakes = limits.handshakes();
    let ended = CancellationToken::new();
    let mut accepting = JoinSet::new();
    for listener in listeners {
        let (mut tls_config, metrics) = (tls_config.clone(), metrics.clone());
        let (connections, stopped) = (connections.clone(), ended.clone());
        accepting.spawn(async move {
            if tls_config.wait_for(Option::is_some).await.is_ok() {
                let current = || tls_config.borrow().clone();
                let failed = move || {
                    metrics.handshakes_failed.inc();
                };
                handshakes::accept(listener, handshakes, current, connections, failed, stopped)
                    .await;
            }
        });
    }
    let incoming = Incoming { incoming, address };
    let closing = shutdown.clone();
    let routes = routes.layer(middleware::map_response(move |answer: Response| {
        let closing = closing.is_cancelled();
        async move { last_of_its_connection(answer, closing) }
    }));
    let routes = |_: &TlsStream<TcpStream>| routes.clone();
    let end = async move {
        shutdown.cancelled().await;
        unlisted.cancelled().await;
        tokio::time::sleep(limits.linger).await;
        ended.cancel();
    };
    http::serve(incoming, limits.connections(), routes, end).await;
    accepting.abort_all();
}

/// During the shutdown a client must not reuse its connection: the next request could be sent when the connection is closed.
fn last_of_its_connection(mut answer: Response, closing: bool) -> Response {
    if closing {
        let close = HeaderValue::from_static("close");
        answer.headers_mut().insert(header::CONNECTION, close);
    }
    answer
}

/// Connections whose handshake is done.
struct Incoming {
    incoming: mpsc::Receiver<Accepted>,
    address: SocketAddr,
}

impl axum::serve::Listener for Incoming {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.incoming.recv().await {
            Some(accepted) => accepted,
            // `shutdown` ends the server.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Ok(self.address)
    }
}

#[cfg(test)]
mod tests;
