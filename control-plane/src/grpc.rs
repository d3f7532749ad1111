//! The listener for proxies: mutual TLS and gRPC.

use std::{io, sync::Arc, time::Duration};

use merlon_api::{
    MAX_MESSAGE, discovery::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer,
    identity::identity_server::IdentityServer, inspection::inspection_server::InspectionServer,
};
use merlon_net::handshakes::{self, Limits};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use crate::{
    issuance::{authority::Authority, issue::Issue},
    push::{Push, inspect::Inspect},
    telemetry::metrics::Metrics,
    transport::peer::Connection,
};

const LIMITS: Limits = Limits {
    at_once: 512,
    timeout: Duration::from_secs(10),
};
/// The maximum size of an `Issue` request: a CSR and a token are small.
const ISSUE_BYTES: usize = 64 << 10;
/// The maximum size of an inspection reply: a configuration dump is larger than any discovery request.
const INSPECT_BYTES: usize = 8 << 20;

/// Serves until `shutdown`, and then until the open streams have ended.
pub(crate) async fn serve(
    listener: TcpListener,
    authority: Authority,
    push: Push,
    issue: Issue,
    inspect: Inspect,
    metrics: Metrics,
    shutdown: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let (connections, incoming) = mpsc::channel(64);
    let (counted, stopped) = (metrics.clone(), shutdown.clone());
    let accepting = tokio::spawn(async move {
        // Until the first certificate is issued, connections wait in the kernel's accept queue.
        authority.ready().await;
        let current = || Some(Arc::clone(&authority.certified()?.server));
        let failed = move || {
            counted.handshakes_failed.inc();
        };
        handshakes::accept(listener, LIMITS, current, connections, failed, stopped).await;
    });
    let incoming = ReceiverStream::new(incoming)
        .map(|accepted| Ok::<_, io::Error>(Connection::from(accepted)));
    let discovery =
        AggregatedDiscoveryServiceServer::new(push).max_decoding_message_size(MAX_MESSAGE);
    let identity = IdentityServer::new(issue).max_decoding_message_size(ISSUE_BYTES);
    let inspection = InspectionServer::new(inspect).max_decoding_message_size(INSPECT_BYTES);
    let served = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        // One stream each for discovery and inspection, and a few calls.
        .max_concurrent_streams(16)
        .http2_max_header_list_size(16 << 10)
        .add_service(discovery)
        .add_service(identity)
        .add_service(inspection)
        .serve_with_incoming_shutdown(incoming, shutdown.cancelled_owned())
        .await;
    accepting.abort();
    served
}
