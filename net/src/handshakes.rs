//! TLS accept with a bounded number of concurrent handshakes, each within a time limit.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;

/// Bounds on handshakes with peers that have not proved an identity.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Handshakes at the same time. Each costs a signature.
    pub at_once: usize,
    /// The longest that one handshake may take.
    pub timeout: Duration,
}

/// A connection and the address it comes from.
pub type Accepted = (TlsStream<TcpStream>, SocketAddr);

/// Accepts connections until `shutdown`, each with the configuration that is current then. While there is none,
/// connections are closed. Calls `on_failure` for each handshake that fails or times out.
pub async fn accept(
    listener: TcpListener,
    limits: Limits,
    current: impl Fn() -> Option<Arc<ServerConfig>>,
    connections: mpsc::Sender<Accepted>,
    on_failure: impl Fn() + Clone + Send + 'static,
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
                // Usually too many open files, which passes. Without the pause the loop would spin.
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
        let (connections, on_failure) = (connections.clone(), on_failure.clone());
        tokio::spawn(async move {
            let _permit = permit;
            // Small messages in both directions must not wait for each other.
            let _ = stream.set_nodelay(true);
            let accepted = TlsAcceptor::from(config).accept(stream);
            let why = match tokio::time::timeout(limits.timeout, accepted).await {
                Ok(Ok(stream)) => {
                    // The receiver is dropped only at shutdown.
                    let _ = connections.send((stream, address)).await;
                    return;
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no handshake within {} s", limits.timeout.as_secs()),
            };
            on_failure();
            tracing::warn!(address = %address, reason = why, "tls.refused");
        });
    }
}

#[cfg(test)]
mod tests;
