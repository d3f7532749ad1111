//! The listener that the API server reaches.

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
/// An API server carries up to 200 changes at once (`--max-mutating-requests-inflight`), each in a connection, of which few
/// ask here; a head is sent as soon as there is a connection.
const CONNECTIONS: Limits = Limits {
    connections: 512,
    // Longer than it keeps an idle connection, so that it is never we who close one that it is about to use.
    head: Duration::from_secs(120),
    answer: Duration::from_secs(10),
};

/// Serves until `shutdown`. Until there is a certificate to show, connections wait.
pub(crate) async fn serve(
    listener: TcpListener,
    mut shown: watch::Receiver<Option<Arc<ServerConfig>>>,
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
        if shown.wait_for(Option::is_some).await.is_ok() {
            let current = || shown.borrow().clone();
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
            // The end is told by other means.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Ok(self.address)
    }
}
