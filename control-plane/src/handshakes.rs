//! Connections whose TLS handshake is done: a bounded number of them at a time, and each within its time.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// What strangers may cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Handshakes at the same time: they cost a signature each.
    pub(crate) at_once: usize,
    /// One that takes longer is a stranger's that wants to hold us up.
    pub(crate) patience: Duration,
}

/// A connection, and from where it came.
pub(crate) type Accepted = (TlsStream<TcpStream>, SocketAddr);

/// Takes connections in until `shutdown`, each with the configuration of its moment; what comes while there is none is
/// closed.
pub(crate) async fn accept(
    listener: TcpListener,
    limits: Limits,
    current: impl Fn() -> Option<Arc<ServerConfig>>,
    connections: mpsc::Sender<Accepted>,
    metrics: Metrics,
    shutdown: CancellationToken,
) {
    let handshakes = Arc::new(Semaphore::new(limits.at_once));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => return,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Mostly too many open files: it passes, and spinning would not help.
                tracing::warn!(error = %error, "accept.failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&handshakes).acquire_owned().await else {
            return;
        };
        let Some(config) = current() else {
            continue;
        };
        let (connections, metrics) = (connections.clone(), metrics.clone());
        tokio::spawn(async move {
            let _permit = permit;
            // Small messages both ways: they must not wait for each other.
            let _ = stream.set_nodelay(true);
            let accepted = TlsAcceptor::from(config).accept(stream);
            let why = match tokio::time::timeout(limits.patience, accepted).await {
                Ok(Ok(stream)) => {
                    // Closed only at the end.
                    let _ = connections.send((stream, address)).await;
                    return;
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => "it took too long".to_owned(),
            };
            metrics.handshakes_failed.inc();
            tracing::warn!(address = %address, reason = why, "tls.refused");
        });
    }
}
