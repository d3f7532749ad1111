//! The listener that the API server reaches.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc, watch},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// A handshake that takes longer is a stranger's that wants to hold us up.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Handshakes at the same time.
const HANDSHAKES: usize = 64;

/// Serves until `shutdown`. Until there is a certificate to show, connections wait.
pub(crate) async fn serve(
    listener: TcpListener,
    shown: watch::Receiver<Option<Arc<ServerConfig>>>,
    routes: Router,
    metrics: Metrics,
    shutdown: CancellationToken,
) {
    let Ok(address) = listener.local_addr() else {
        return;
    };
    let (connections, incoming) = mpsc::channel(64);
    let accepting = tokio::spawn(accept(listener, shown, connections, metrics));
    let incoming = Incoming { incoming, address };
    let served = axum::serve(incoming, routes)
        .with_graceful_shutdown(shutdown.cancelled_owned())
        .await;
    accepting.abort();
    if let Err(error) = served {
        tracing::error!(%error, "webhook.ended");
    }
}

async fn accept(
    listener: TcpListener,
    mut shown: watch::Receiver<Option<Arc<ServerConfig>>>,
    connections: mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>,
    metrics: Metrics,
) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    if shown.wait_for(Option::is_some).await.is_err() {
        return;
    }
    loop {
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accept.failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&handshakes).acquire_owned().await else {
            return;
        };
        let Some(config) = shown.borrow().clone() else {
            continue;
        };
        let (connections, metrics) = (connections.clone(), metrics.clone());
        tokio::spawn(async move {
            let _permit = permit;
            let accepted = TlsAcceptor::from(config).accept(stream);
            match tokio::time::timeout(HANDSHAKE, accepted).await {
                Ok(Ok(stream)) => {
                    // Closed only at the end.
                    let _ = connections.send((stream, address)).await;
                }
                Ok(Err(_)) | Err(_) => {
                    metrics.handshakes_failed.inc();
                }
            }
        });
    }
}

/// Connections whose handshake is done.
struct Incoming {
    incoming: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
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
