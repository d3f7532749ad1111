//! The delta stream: how it opens, and why it ends.

use std::time::Duration;

use merlon_api::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
    aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
};
use tokio::{sync::mpsc, task::JoinHandle, time};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};

/// Maximum size of a message. A response contains half a mebibyte, or one larger resource.
const MESSAGE: usize = 16 << 20;

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamEnd {
    #[error("cannot connect")]
    Connect(#[from] tonic::transport::Error),
    #[error("no TLS configuration")]
    Tls(#[from] rustls::Error),
    #[error("the control plane responded: {} ({})", .0.message(), .0.code())]
    Status(Box<tonic::Status>),
    #[error("the control plane closed the stream")]
    Closed,
    #[error("the control plane violated the protocol: {0}")]
    Protocol(String),
    #[error("the certificate changed")]
    Certificate,
}

pub(super) type Opened = (
    Channel,
    mpsc::Sender<DeltaDiscoveryRequest>,
    Streaming<DeltaDiscoveryResponse>,
);

/// A task that ends with the stream.
pub(super) struct AbortOnDrop(pub(super) JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Opens a stream whose first requests these are.
pub(super) async fn open(
    channel: Channel,
    first: impl IntoIterator<Item = DeltaDiscoveryRequest>,
) -> Result<Opened, StreamEnd> {
    let (requests, stream) = mpsc::channel(64);
    let mut client =
        AggregatedDiscoveryServiceClient::new(channel.clone()).max_decoding_message_size(MESSAGE);
    // Queue the first requests before the call: the server may respond only after it has read one.
    for request in first {
        requests.try_send(request).map_err(|_| StreamEnd::Closed)?;
    }
    let opening = client.delta_aggregated_resources(ReceiverStream::new(stream));
    let answered = time::timeout(Duration::from_secs(10), opening).await;
    let answered =
        answered.unwrap_or_else(|_| Err(tonic::Status::deadline_exceeded("no response in time")));
    let answered = answered.map_err(|status| StreamEnd::Status(Box::new(status)))?;
    Ok((channel, requests, answered.into_inner()))
}
