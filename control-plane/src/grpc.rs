//! The listener for proxies: mutual TLS and gRPC.

use std::{io, sync::Arc};

use merlon_api::{
    MAX_MESSAGE, discovery::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer,
    identity::identity_server::IdentityServer, inspection::inspection_server::InspectionServer,
};
use merlon_net::handshakes;
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use crate::{
    issuance::{authority::Authority, issue::Issue},
    limits::ProxyListenerLimits,
    push::{Push, inspect::Inspect},
    telemetry::metrics::Metrics,
    transport::peer::Connection,
};

/// Serves until `shutdown`, and then until the open streams have ended.
pub(crate) async fn serve(
    (listener, limits): (TcpListener, ProxyListenerLimits),
    authority: Authority,
    push: Push,
    issue: Issue,
    inspect: Inspect,
    metrics: Metrics,
    shutdown: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let (connections, incoming) = mpsc::channel(64);
    let handshakes = limits.handshakes();
    let (counted, stopped) = (metrics.clone(), shutdown.clone());
    let accepting = tokio::spawn(async move {
        // Until the first certificate is issued, connections wait in the kernel's accept queue.
        authority.ready().await;
        let current = || Some(Arc::clone(&authority.certified()?.server));
        let failed = move || {
            counted.handshakes_failed.inc();
        };
        handshakes::accept(listener, handshakes, current, connections, failed, stopped).await;
    });
    let incoming = ReceiverStream::new(incoming)
        .map(|accepted| Ok::<_, io::Error>(Connection::from(accepted)));
    let discovery =
        AggregatedDiscoveryServiceServer::new(push).max_decoding_message_size(MAX_MESSAGE);
    let identity = IdentityServer::new(issue).max_decoding_message_size(limits.issue_bytes);
    let inspection = InspectionServer::new(inspect).max_decoding_message_size(limits.inspect_bytes);
    let served = Server::builder()
        .http2_keepalive_interval(Some(limits.keepalive))
        .http2_keepalive_timeout(Some(limits.keepalive_timeout))
        .max_concurrent_streams(limits.streams)
        .http2_max_header_list_size(16 << 10)
        .add_service(discovery)
        .add_service(identity)
        .add_service(inspection)
        .serve_with_incoming_shutdown(incoming, shutdown.cancelled_owned())
        .await;
    accepting.abort();
    served
}
