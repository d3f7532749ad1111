//! Answers inspection requests over a stream that this proxy opens to the control plane.

use std::{sync::Arc, time::Duration};

use merlon_api::inspection::{
    Ask, DumpReply, FactsReply, InspectReply, InspectRequest, Reply, Report, RotateReply,
    inspection_client::InspectionClient,
};
use serde_json::json;
use tokio::{
    sync::{mpsc, oneshot},
    time,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::{dump, identity::Renew, snapshot_age::SnapshotAge};
use crate::{
    state::shared::Shared,
    telemetry::decision_log::{DecisionId, RecordedDecision},
};

/// The state that can be inspected.
#[derive(Debug, Clone)]
pub(crate) struct Inspected {
    pub(crate) node_id: String,
    pub(crate) shared: Arc<Shared>,
    pub(crate) snapshot_age: SnapshotAge,
    pub(crate) renew: Renew,
}

/// How often the proxy reports without a change.
const REPORT: Duration = Duration::from_secs(10);

/// Delay before the stream is reopened, if it fails while the connection stays open.
const RETRY: Duration = Duration::from_secs(2);

/// Maximum size of a request.
const MESSAGE: usize = 16 << 10;

/// Time limit of a renewal, which goes through the control plane to Vault.
const RENEWAL: Duration = Duration::from_secs(25);

/// Runs until it is aborted together with the connection.
pub(crate) async fn serve(channel: Channel, inspected: Inspected) {
    loop {
        if let Err(status) = stream(channel.clone(), &inspected).await {
            tracing::debug!(%status, "inspection.ended");
        }
        time::sleep(RETRY).await;
    }
}

async fn stream(channel: Channel, inspected: &Inspected) -> Result<(), tonic::Status> {
    let (replies, outgoing) = mpsc::channel(16);
    let gone = |_| tonic::Status::cancelled("the stream ended");
    let mut snapshots = inspected.shared.snapshot.watch();
    let mut identities = inspected.shared.identity.watch();
    let mut health = inspected.shared.readiness.watch();
    replies.send(report(inspected)).await.map_err(gone)?;
    let mut client = InspectionClient::new(channel).max_decoding_message_size(MESSAGE);
    let mut questions = client
        .serve(ReceiverStream::new(outgoing))
        .await?
        .into_inner();
    let mut regularly = time::interval(REPORT);
    regularly.reset();
    loop {
        tokio::select! {
            question = questions.message() => match question? {
                Some(question) => answer(question, inspected, &replies),
                None => return Ok(()),
            },
            Ok(()) = snapshots.changed() => replies.send(report(inspected)).await.map_err(gone)?,
            Ok(()) = identities.changed() => replies.send(report(inspected)).await.map_err(gone)?,
            Ok(()) = health.changed() => replies.send(report(inspected)).await.map_err(gone)?,
            _ = regularly.tick() => replies.send(report(inspected)).await.map_err(gone)?,
        }
    }
}

fn report(inspected: &Inspected) -> InspectReply {
    let shared = &inspected.shared;
    let identity = shared.identity.load_full();
    let svid = identity.as_ref().as_ref().map(|tls| tls.svid());
    let snapshot = shared.snapshot.load_full();
    let reason = shared.readiness.reasons().into_iter().next();
    let report = Report {
        node_id: inspected.node_id.clone(),
        certificate_serial: svid.map(|svid| svid.serial.clone()).unwrap_or_default(),
        certificate_not_after: svid
            .map(|svid| i64::try_from(svid.not_after.as_secs()).unwrap_or(i64::MAX))
            .unwrap_or_default(),
        snapshot_version: snapshot
            .as_ref()
            .as_ref()
            .map(|snapshot| snapshot.version.to_string())
            .unwrap_or_default(),
        snapshot_age_seconds: inspected.snapshot_age.age(),
        ready: reason.is_none(),
        not_ready_reason: reason
            .map(|reason| format!("{}: {}", reason.code.code(), reason.message))
            .unwrap_or_default(),
    };
    InspectReply {
        id: 0,
        reply: Some(Reply::Report(report)),
    }
}

/// Answers in a separate task, so that other requests do not wait for a renewal.
fn answer(question: InspectRequest, inspected: &Inspected, replies: &mpsc::Sender<InspectReply>) {
    let (inspected, replies) = (inspected.clone(), replies.clone());
    tokio::spawn(async move {
        let reply = match question.ask {
            Some(Ask::Facts(ask)) => facts(&ask.decision_id, &inspected.shared),
            Some(Ask::Dump(_)) => Reply::Dump(DumpReply {
                json: dump::dump(&inspected.shared).to_string().into_bytes(),
            }),
            Some(Ask::Rotate(_)) => rotate(&inspected.renew).await,
            None => Reply::Error("this proxy does not support the request".to_owned()),
        };
        // Fails if the stream has ended.
        let _ = replies
            .send(InspectReply {
                id: question.id,
                reply: Some(reply),
            })
            .await;
    });
}

fn facts(id: &str, shared: &Shared) -> Reply {
    let id: DecisionId = match id.parse() {
        Ok(id) => id,
        Err(error) => return Reply::Error(format!("{error}")),
    };
    let found = shared.decisions.find(id);
    match found.map(|decision| facts_reply(&decision)) {
        None => Reply::Facts(FactsReply::default()),
        Some(Ok(reply)) => Reply::Facts(reply),
        Some(Err(error)) => {
            Reply::Error(format!("the decision cannot be written as JSON: {error}"))
        }
    }
}

fn facts_reply(decision: &RecordedDecision) -> Result<FactsReply, serde_json::Error> {
    let mut reply = FactsReply {
        found: true,
        decision: serde_json::to_vec(&json!({
            "decision_id": decision.id,
            "asked": decision.asked,
            "outcome": decision.outcome,
        }))?,
        ..FactsReply::default()
    };
    if let Some(evidence) = &decision.evidence {
        reply.facts = serde_json::to_vec(&evidence.facts)?;
        reply.service = serde_json::to_vec(&*evidence.service)?;
        reply.mesh = serde_json::to_vec(&*evidence.mesh)?;
        reply.snapshot_version = evidence.snapshot.to_string();
    }
    Ok(reply)
}

async fn rotate(renew: &Renew) -> Reply {
    let (asker, answer) = oneshot::channel();
    if renew.try_send(asker).is_err() {
        return Reply::Error("a renewal is already in progress".to_owned());
    }
    match time::timeout(RENEWAL, answer).await {
        Ok(Ok(Ok((old_serial, new_serial)))) => Reply::Rotated(RotateReply {
            old_serial,
            new_serial,
        }),
        Ok(Ok(Err(error))) => Reply::Error(format!("no new certificate: {error}")),
        Ok(Err(_)) | Err(_) => Reply::Error("no new certificate in time".to_owned()),
    }
}
