//! Runs a session over gRPC: reads the proxy's messages, waits for new snapshots, sends the responses.

use std::{pin::Pin, sync::Arc, time::Duration};

use merlon_api::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
    aggregated_discovery_service_server::AggregatedDiscoveryService,
};
use merlon_config::snapshot::ResourceKind;
use tokio::sync::{mpsc, watch};
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::{
    registry::{DiscoveryEntry, Registry},
    session::{ProxyAck, Session},
};
use crate::{
    limits::PushLimits,
    state::snapshot::{Snapshot, Snapshots},
    tasks::Tasks,
    telemetry::{
        metrics::{Metrics, ServiceLabel},
        spans,
    },
    transport::peer::{ConnectionPeer, PeerSvid},
};

/// The gRPC service of the discovery streams.
#[derive(Debug, Clone)]
pub(crate) struct Push {
    pub(crate) snapshots: Snapshots,
    pub(crate) registry: Registry,
    pub(crate) metrics: Metrics,
    pub(crate) limits: PushLimits,
    pub(crate) tasks: Tasks,
    pub(crate) shutdown: CancellationToken,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Push {
    type DeltaAggregatedResourcesStream =
        Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let peer = ConnectionPeer::of(&request)?;
        let svid = peer.proved()?;
        let (responses, stream) = mpsc::channel(self.limits.queue.max(1));
        let task = Task {
            push: self.clone(),
            peer,
            session: Session::new(svid.id.clone()),
            svid,
            entry: None,
            snapshot: 0,
            responses,
        };
        self.tasks.spawn(task.run(request.into_inner()));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

struct Task {
    push: Push,
    peer: ConnectionPeer,
    svid: Arc<PeerSvid>,
    session: Session,
    entry: Option<DiscoveryEntry>,
    /// The number of the snapshot that the session was last computed from.
    snapshot: u64,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
}

impl Task {
    async fn run(mut self, requests: Streaming<DeltaDiscoveryRequest>) {
        let shutdown = self.push.shutdown.clone();
        let (svid, responses) = (Arc::clone(&self.svid), self.responses.clone());
        let clock_check = self.push.limits.clock_check;
        let served = tokio::select! {
            served = self.serve(requests) => served,
            () = shutdown.cancelled() => Err(Status::unavailable("the control plane is shutting down")),
            // The proxy reconnects with its next certificate, and is only sent what has changed.
            () = svid.ended(clock_check) => Err(Status::unauthenticated("the certificate of this connection has expired")),
            () = responses.closed() => Ok(()),
        };
        if let Err(status) = served {
            if status.code() != tonic::Code::Unavailable {
                let label = ServiceLabel { service: "push" };
                self.push
                    .metrics
                    .requests_refused
                    .get_or_create(&label)
                    .inc();
                tracing::warn!(
                    identity = %self.svid.id,
                    node = self.session.node().map_or("", |node| &node.id),
                    address = %self.peer.address,
                    code = ?status.code(),
                    reason = status.message(),
                    "push.refused"
                );
            }
            // The status is sent after the queued responses. A proxy that does not read is not waited for.
            let _ = self
                .responses
                .send_timeout(Err(status), self.push.limits.last_status)
                .await;
        }
    }

    async fn serve(
        &mut self,
        mut requests: Streaming<DeltaDiscoveryRequest>,
    ) -> Result<(), Status> {
        let mut snapshots = self.push.snapshots.watch();
        let PushLimits {
            hold: held_for,
            coalesce,
            ..
        } = self.push.limits;
        loop {
            let hold = self.session.is_held();
            tokio::select! {
                request = requests.next() => match request {
                    None => return Ok(()),
                    // The proxy disconnected, or sent an invalid message; the status says which.
                    Some(Err(status)) => return Err(status),
                    Some(Ok(request)) => {
                        let snapshot = snapshots.borrow_and_update().clone();
                        self.take(&request, &snapshot)?;
                    }
                },
                changed = next_snapshot(&mut snapshots, coalesce), if self.session.node().is_some() => {
                    let Some(snapshot) = changed else { return Ok(()) };
                    self.session.refresh(&snapshot)?;
                    self.snapshot = snapshot.number;
                }
                () = tokio::time::sleep(held_for), if hold => {
                    self.session.release();
                    // This includes a change that the arm above is still coalescing.
                    let snapshot = snapshots.borrow_and_update().clone();
                    self.session.refresh(&snapshot)?;
                    self.snapshot = snapshot.number;
                }
            }
            self.send().await?;
        }
    }

    fn take(&mut self, request: &DeltaDiscoveryRequest, snapshot: &Snapshot) -> Result<(), Status> {
        let answer = self.session.receive(request, snapshot)?;
        self.snapshot = snapshot.number;
        if self.entry.is_none()
            && let Some(node) = self.session.node()
        {
            let registry = &self.push.registry;
            let entry = registry.connect(&self.svid, self.peer.address, &node.id, &node.version);
            tracing::info!(
                identity = %self.svid.id,
                node = node.id,
                address = %self.peer.address,
                version = node.version,
                "proxy.connected"
            );
            self.entry = Some(entry);
        }
        self.update_entry();
        if let (Some(answer), Some(entry)) = (answer, &self.entry) {
            self.log(&answer);
            entry.record_ack(answer);
        }
        Ok(())
    }

    fn log(&self, answer: &ProxyAck) {
        match answer {
            ProxyAck::Acknowledged(version) => {
                self.push.metrics.acknowledged.inc();
                tracing::debug!(identity = %self.svid.id, snapshot = version.short(), "snapshot.acknowledged");
            }
            ProxyAck::Refused(version, reason) => {
                self.push.metrics.refused.inc();
                tracing::warn!(
                    identity = %self.svid.id,
                    node = self.session.node().map_or("", |node| &node.id),
                    snapshot = version.as_ref().map_or("", |version| version.as_str()),
                    reason,
                    "snapshot.refused"
                );
            }
        }
    }

    fn update_entry(&self) {
        if let Some(entry) = &self.entry {
            let proxy = self.session.proxy();
            entry.set_expected(
                proxy.map(|proxy| (proxy.name(), proxy.is_gateway())),
                self.session.version(),
                self.session.subscriptions(),
                self.snapshot,
            );
        }
    }

    async fn send(&mut self) -> Result<(), Status> {
        self.update_entry();
        let due = self.session.due();
        if due.is_empty() {
            return Ok(());
        }
        let mut span = spans::span("merlon.push");
        span.note("merlon.peer", self.svid.id.to_string());
        let resources: usize = due.iter().map(|response| response.resources.len()).sum();
        span.note(
            "merlon.resources",
            i64::try_from(resources).unwrap_or(i64::MAX),
        );
        for response in due {
            if let (Some(entry), Some(kind)) =
                (&self.entry, ResourceKind::from_type_url(&response.type_url))
            {
                entry.sent(kind, response.resources.len());
            }
            // Only this task waits for a slow proxy.
            if self.responses.send(Ok(response)).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// The next snapshot and the changes within `coalesce` after it; `None` when the sender is gone.
async fn next_snapshot(
    snapshots: &mut watch::Receiver<Snapshot>,
    coalesce: Duration,
) -> Option<Snapshot> {
    snapshots.changed().await.ok()?;
    tokio::time::sleep(coalesce).await;
    Some(snapshots.borrow_and_update().clone())
}
