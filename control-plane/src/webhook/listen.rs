//! The listener for the API server.

use std::{io, net::SocketAddr, sync::Arc};

use axum::Router;
use merlon_net::{
    handshakes::{self, Accepted},
    http,
};
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::{limits::WebhookLimits, telemetry::metrics::Metrics};

/// Serves until `shutdown`. Connections wait until there is a certificate.
pub(crate) async fn serve(
    listener: TcpListener,
    limits: WebhookLimits,
    mut tls_config: watch::Receiver<Option<Arc<ServerConfig>>>,
    routes: Router,
    metrics: Metrics,
    shutdown: CancellationToken,
) {
    let Ok(address) = listener.local_addr() else {
        return;
    };
    let (connections, incoming) = mpsc::channel(64);
    let handshakes = limits.handshakes();
    let stopped = shutdown.clone();
    let accepting = tokio::spawn(async move {
        if tls_config.wait_for(Option::is_some).await.is_ok() {
            let current = || tls_config.borrow().clone();
            let failed = move || {
                metrics.handshakes_failed.inc();
            };
            handshakes::accept(listener, handshakes, current, connections, failed, stopped).await;
        }
    });
    let incoming = Incoming { incoming, address };
    let routes = |_: &TlsStream<TcpStream>| routes.clone();
    http::serve(
        incoming,
        limits.connections(),
        routes,
        shutdown.cancelled_owned(),
    )
    .await;
    accepting.abort();
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
