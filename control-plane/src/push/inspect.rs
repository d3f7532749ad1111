//! Inspection: sends requests to a proxy over the stream that the proxy opened for them.

use std::{collections::HashMap, pin::Pin, sync::Arc};

use merlon_api::{
    MAX_NAME,
    inspection::{Ask, InspectReply, InspectRequest, Reply, Report, inspection_server::Inspection},
};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    limits::InspectionLimits,
    push::registry::{Inspector, Registry},
    tasks::Tasks,
    telemetry::metrics::{Metrics, ServiceLabel},
    transport::peer::{ConnectionPeer, PeerSvid},
};

/// The gRPC service of the inspection.
#[derive(Debug, Clone)]
pub(crate) struct Inspect {
    pub(crate) registry: Registry,
    pub(crate) metrics: Metrics,
    pub(crate) limits: InspectionLimits,
    pub(crate) tasks: Tasks,
    pub(crate) shutdown: CancellationToken,
}

#[tonic::async_trait]
impl Inspection for Inspect {
    type ServeStream = Pin<Box<dyn Stream<Item = Result<InspectRequest, Status>> + Send>>;

    async fn serve(
        &self,
        request: Request<Streaming<InspectReply>>,
    ) -> Result<Response<Self::ServeStream>, Status> {
        let peer = ConnectionPeer::of(&request)?;
        let svid = peer.proved()?;
        let (requests, stream) = mpsc::channel(self.limits.queue.max(1));
        let this = self.clone();
        self.tasks.spawn(async move {
            let served = tokio::select! {
                served = this.follow(&peer, &svid, request.into_inner(), &requests) => served,
                () = this.shutdown.cancelled() => Err(Status::unavailable("the control plane is shutting down")),
                () = svid.ended(this.limits.clock_check) => Err(Status::unauthenticated("the certificate of this connection has expired")),
                () = requests.closed() => Ok(()),
            };
            if let Err(status) = served {
                if status.code() == tonic::Code::InvalidArgument {
                    let label = ServiceLabel { service: "inspection" };
                    this.metrics.requests_refused.get_or_create(&label).inc();
                    tracing::warn!(identity = %svid.id, address = %peer.address, reason = status.message(), "inspection.refused");
                }
                let _ = requests.try_send(Err(status));
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

impl Inspect {
    async fn follow(
        &self,
        peer: &ConnectionPeer,
        svid: &Arc<PeerSvid>,
        mut replies: Streaming<InspectReply>,
        requests: &mpsc::Sender<Result<InspectRequest, Status>>,
    ) -> Result<(), Status> {
        let Some(first) = replies.next().await else {
            return Ok(());
        };
        let report = first_report(first?)?;
        let (ask, mut asked) = mpsc::channel(self.limits.queue.max(1));
        let inspector = Inspector(ask);
        let entry = self
            .registry
            .inspect(svid, peer.address, &report.node_id, inspector);
        entry.reported(&report);
        let mut open = PendingRequests::new(self.limits.pending);
        loop {
            tokio::select! {
                reply = replies.next() => {
                    let Some(reply) = reply else { return Ok(()) };
                    let InspectReply { id, reply } = reply?;
                    match reply {
                        Some(Reply::Report(report)) => entry.reported(&report),
                        Some(reply) => open.answer(id, reply),
                        None => return Err(Status::invalid_argument("a reply without content")),
                    }
                }
                question = asked.recv() => {
                    // Closed when a newer stream of the same process has replaced this one.
                    let Some((ask, answer)) = question else { return Ok(()) };
                    let request = open.ask(ask, answer);
                    if requests.send(Ok(request)).await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
    }
}

pub(crate) fn first_report(reply: InspectReply) -> Result<Report, Status> {
    let Some(Reply::Report(report)) = reply.reply else {
        return Err(Status::invalid_argument(
            "the first message must be a report",
        ));
    };
    let id = &report.node_id;
    if id.is_empty() || id.len() > MAX_NAME || !id.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Status::invalid_argument(format!(
            "`report.node_id` must be 1 to {MAX_NAME} visible ASCII characters"
        )));
    }
    Ok(report)
}

/// Requests without a reply.
#[derive(Debug)]
struct PendingRequests {
    limit: usize,
    last: u64,
    waiting: HashMap<u64, oneshot::Sender<Reply>>,
}

impl PendingRequests {
    fn new(limit: usize) -> Self {
        Self {
            limit,
            last: 0,
            waiting: HashMap::new(),
        }
    }

    fn ask(&mut self, ask: Ask, answer: oneshot::Sender<Reply>) -> InspectRequest {
        self.waiting.retain(|_, waiting| !waiting.is_closed());
        if self.waiting.len() >= self.limit
            && let Some(oldest) = self.waiting.keys().min().copied()
        {
            self.waiting.remove(&oldest);
        }
        self.last += 1;
        self.waiting.insert(self.last, answer);
        InspectRequest {
            id: self.last,
            ask: Some(ask),
        }
    }

    /// Drops a reply to an unknown or dropped request.
    fn answer(&mut self, id: u64, reply: Reply) {
        if let Some(waiting) = self.waiting.remove(&id) {
            let _ = waiting.send(reply);
        }
    }
}

#[cfg(test)]
mod tests {
    use merlon_api::inspection::DumpAsk;

    use super::*;

    #[test]
    fn beyond_the_limit_the_oldest_request_is_dropped_and_its_caller_is_informed() {
        let mut open = PendingRequests::new(2);
        let mut asked: Vec<_> = (0..3)
            .map(|_| {
                let (answer, answered) = oneshot::channel();
                (open.ask(Ask::Dump(DumpAsk {}), answer).id, answered)
            })
            .collect();
        assert_eq!(open.waiting.len(), 2);
        let (oldest, mut dropped) = asked.remove(0);
        assert_eq!(
            dropped.try_recv(),
            Err(oneshot::error::TryRecvError::Closed)
        );
        // A late reply to it is ignored.
        open.answer(oldest, Reply::Error("late".to_owned()));
        for (id, mut answered) in asked {
            open.answer(id, Reply::Error(id.to_string()));
            assert_eq!(answered.try_recv(), Ok(Reply::Error(id.to_string())));
        }
        assert!(open.waiting.is_empty());
    }

    #[test]
    fn a_request_whose_caller_has_given_up_takes_no_place() {
        let mut open = PendingRequests::new(2);
        let (kept, mut answered) = oneshot::channel();
        let kept = open.ask(Ask::Dump(DumpAsk {}), kept).id;
        for _ in 0..10 {
            let (answer, given_up) = oneshot::channel();
            open.ask(Ask::Dump(DumpAsk {}), answer);
            drop(given_up);
        }
        open.answer(kept, Reply::Error(String::new()));
        assert!(answered.try_recv().is_ok());
    }
}
