//! The listener for the API server.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use merlon_net::{
    handshakes::{self, Accepted},
    http::{self, Limits},
};
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::telemetry::metrics::Metrics;

const HANDSHAKES: handshakes::Limits = handshakes::Limits {
    at_once: 64,
    timeout: Duration::from_secs(5),
};
/// An API server handles up to 200 changes at a time (`--max-mutating-requests-inflight`), each with a connection of
/// its own, and only few of them call a webhook. It sends a request as soon as it has a connection.
const CONNECTIONS: Limits = Limits {
    connections: 512,
    // Longer than the API server keeps an idle connection, so the webhook never closes one that is about to be used.
    head: Duration::from_secs(120),
    answer: Duration::from_secs(10),
};

/// Serves until `shutdown`. Connections wait until there is a certificate.
pub(crate) async fn serve(
    listener: TcpListener,
    mut tls_config: watch::Receiver<Option<Arc<ServerConfig>>>,
    routes: Router,
    metrics: Metrics,
    shutdown: CancellationToken,
) {
    let Ok(address) = listener.local_addr() else {
        return;
    };
    let (connections, incoming) = mpsc::channel(64);
    let stopped = shutdown.clone();
    let accepting = tokio::spawn(async move {
        if tls_config.wait_for(Option::is_some).await.is_ok() {
            let current = || tls_config.borrow().clone();
            let failed = move || {
                metrics.handshakes_failed.inc();
            };
            handshakes::accept(listener, HANDSHAKES, current, connections, failed, stopped).await;
        }
    });
    let incoming = Incoming { incoming, address };
    let routes = |_: &TlsStream<TcpStream>| routes.clone();
    http::serve(incoming, CONNECTIONS, routes, shutdown.cancelled_owned()).await;
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
