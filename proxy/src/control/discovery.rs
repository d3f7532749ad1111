//! Follows the control plane: one delta stream, kept open, opened again when it breaks.
//!
//! What is said on the stream is [`subscriber`]'s matter, which knows no sockets; what is compiled is
//! [`crate::control::assemble`]'s. Here is what holds them together: connecting, waiting, compiling off this thread,
//! putting in force, keeping on disk.

pub(crate) mod saved;
mod subscriber;

use std::{collections::HashMap, sync::Arc, time::Duration};

use merlon_api::{
    control_plane_id,
    discovery::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
};
use merlon_certs::{H2, MeshTls};
use merlon_config::{causes::chain, name::Namespace, snapshot::AddressState};
use merlon_net::backoff::Backoff;
use tokio::{
    sync::{mpsc, oneshot},
    task::{self, JoinHandle},
    time::{self, Instant},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};
use url::Url;

use self::{
    saved::{SavedSnapshot, Writer},
    subscriber::{Complete, Subscriber},
};
use super::{
    assemble::{AssembleError, Assembler},
    connection,
    identity::Renew,
    inspect,
    secret_folder::SecretFolder,
    snapshot_age::SnapshotAge,
    state_dir::StateDir,
};
use crate::{
    config::Subject,
    state::{
        destinations::{LookupError, LookupKey, LookupRequest, LookupResult},
        readiness::Unready,
        secrets,
        shared::Shared,
        snapshot::Snapshot,
    },
    telemetry::metrics::{FetchResult, Metrics, Update},
};

/// What following begins with.
#[derive(Debug)]
pub(crate) struct DiscoveryDeps {
    pub(crate) node_id: String,
    pub(crate) address: Url,
    pub(crate) root_namespace: Namespace,
    pub(crate) subject: Subject,
    pub(crate) state_dir: Option<Arc<StateDir>>,
    pub(crate) secrets: Option<Arc<SecretFolder>>,
    pub(crate) renew: Renew,
    pub(crate) freshness: SnapshotAge,
    pub(crate) shared: Arc<Shared>,
    pub(crate) metrics: Arc<Metrics>,
}

/// How long tries to connect are apart.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// A stream that lasted so long was a success, and the next failure begins anew.
const LASTED: Duration = Duration::from_secs(5);

/// A new certificate is used for the stream after this time: what is being answered over the old one can finish.
const CHANGE: Duration = Duration::from_secs(2);

/// A manifest whose resources do not come within this time is refused.
const COMPLETE: Duration = Duration::from_secs(10);

/// The largest message that is read: a response carries half a mebibyte, or one resource that is larger.
const MESSAGE: usize = 16 << 20;

/// For how long it is remembered that there is no such service.
const ABSENT: Duration = Duration::from_secs(2);

/// Names that are remembered not to exist; more are lookups for again.
const ABSENT_NAMES: usize = 1_024;

/// How many addresses outside are forgotten when there is no room for another.
const FORGOTTEN_AT_ONCE: usize = 64;

/// Follows the control plane.
#[derive(Debug)]
pub(crate) struct Follow {
    start: DiscoveryDeps,
    subscriber: Option<Subscriber>,
    assembler: Option<Arc<Assembler>>,
    compiling: Option<JoinHandle<Compiled>>,
    writer: Option<Writer>,
    waiting: HashMap<LookupKey, Vec<oneshot::Sender<LookupResult>>>,
    absent: HashMap<LookupKey, Instant>,
    /// Whether the program's secrets were all there once.
    has_secrets: bool,
}

#[derive(Debug)]
struct Compiled {
    state: Complete,
    result: Result<Snapshot, AssembleError>,
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum StreamEnd {
    #[error("cannot connect")]
    Connect(#[from] tonic::transport::Error),
    #[error("no TLS configuration")]
    Tls(#[from] rustls::Error),
    #[error("the control plane says: {} ({})", .0.message(), .0.code())]
    Status(Box<tonic::Status>),
    #[error("the control plane closed the stream")]
    Closed,
    #[error("the control plane does not keep to the protocol: {0}")]
    Protocol(String),
    #[error("the certificate changed")]
    Certificate,
}

impl Follow {
    pub(crate) fn new(start: DiscoveryDeps) -> Self {
        Self {
            start,
            subscriber: None,
            assembler: None,
            compiling: None,
            writer: None,
            waiting: HashMap::new(),
            absent: HashMap::new(),
            has_secrets: false,
        }
    }

    /// Until the process ends.
    pub(crate) async fn run(mut self, mut lookups: mpsc::Receiver<LookupRequest>) {
        self.restore().await;
        let state_dir = self.start.state_dir.clone();
        self.writer = state_dir.map(|folder| Writer::start(folder, &self.start.metrics));
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let mut identities = self.start.shared.identity.watch();
        loop {
            identities.borrow_and_update();
            let identity = self.start.shared.identity.load_full();
            let Some(tls) = identity.as_ref() else {
                // Without a certificate there is nothing to connect with.
                tokio::select! {
                    _ = identities.changed() => {}
                    Some(request) = lookups.recv() => self.look_up(request),
                }
                continue;
            };
            let opened = Instant::now();
            let end = self.stream(tls, &mut identities, &mut lookups).await;
            self.start.metrics.connected.set(0);
            self.start.freshness.stale();
            let wait = match end {
                StreamEnd::Certificate => Duration::ZERO,
                end => {
                    tracing::warn!(
                        address = %self.start.address,
                        error = chain(&end),
                        "control_plane.disconnected"
                    );
                    if opened.elapsed() > LASTED {
                        backoff.reset();
                    }
                    backoff.next_wait()
                }
            };
            let again = time::sleep(wait);
            tokio::pin!(again);
            loop {
                tokio::select! {
                    () = &mut again => break,
                    Some(request) = lookups.recv() => self.look_up(request),
                }
            }
        }
    }

    /// One stream, until it ends.
    async fn stream(
        &mut self,
        tls: &Arc<MeshTls>,
        identities: &mut tokio::sync::watch::Receiver<u64>,
        lookups: &mut mpsc::Receiver<LookupRequest>,
    ) -> StreamEnd {
        let opened = self.open(tls).await;
        let result = if opened.is_ok() {
            FetchResult::Ok
        } else {
            FetchResult::Failed
        };
        self.start.metrics.connects.inc(result);
        let (channel, requests, mut responses) = match opened {
            Ok(opened) => opened,
            Err(end) => return end,
        };
        tracing::info!(address = %self.start.address, "control_plane.connected");
        self.start.metrics.connected.set(1);
        let inspection = tokio::spawn(inspect::serve(
            channel,
            inspect::Inspected {
                node_id: self.start.node_id.clone(),
                shared: Arc::clone(&self.start.shared),
                freshness: self.start.freshness.clone(),
                renew: self.start.renew.clone(),
            },
        ));
        let inspection = AbortOnDrop(inspection);
        let serial = tls.svid().serial.clone();
        let mut change_at: Option<Instant> = None;
        let end = loop {
            let incomplete = self
                .subscriber
                .as_ref()
                .and_then(Subscriber::incomplete_since);
            let incomplete = incomplete.map(|since| since + COMPLETE);
            tokio::select! {
                message = responses.message() => match message {
                    Ok(Some(response)) => {
                        if let Err(end) = self.receive(response, &requests).await {
                            break end;
                        }
                    }
                    Ok(None) => break StreamEnd::Closed,
                    Err(status) => break StreamEnd::Status(Box::new(status)),
                },
                compiled = finished(&mut self.compiling) => {
                    if let Err(end) = self.compiled(compiled, &requests).await {
                        break end;
                    }
                }
                Some(request) = lookups.recv() => {
                    self.look_up(request);
                    if let Err(end) = self.send_pending(&requests).await {
                        break end;
                    }
                }
                () = sleep_until(incomplete) => {
                    if let Some(subscriber) = &mut self.subscriber {
                        subscriber.give_up();
                    }
                    self.start.metrics.snapshots.inc(Update::Refused);
                    if let Err(end) = self.send_pending(&requests).await {
                        break end;
                    }
                }
                Ok(()) = identities.changed() => {
                    let now = self.start.shared.identity.load();
                    let same = now.as_ref().as_ref().is_some_and(|now| now.svid().serial == serial);
                    if !same {
                        change_at = Some(Instant::now() + CHANGE);
                    }
                }
                () = sleep_until(change_at) => break StreamEnd::Certificate,
            }
        };
        drop(inspection);
        end
    }

    async fn open(&mut self, tls: &Arc<MeshTls>) -> Result<Opened, StreamEnd> {
        let id = &tls.svid().id;
        let control_plane = control_plane_id(id.trust_domain(), &self.start.root_namespace);
        let channel = connection::connect(
            &self.start.address,
            tls.client_config(&control_plane, &[H2])?,
        )
        .await?;
        if self
            .subscriber
            .as_ref()
            .is_some_and(|subscriber| subscriber.identity() != id)
        {
            self.subscriber = None;
            self.assembler = None;
        }
        let subscriber = self
            .subscriber
            .get_or_insert_with(|| Subscriber::new(id.clone()));
        // Whoever waits since before there was anybody to ask.
        for name in self.waiting.keys() {
            subscriber.subscribe_to(name);
        }
        let workload = match &self.start.subject {
            Subject::Sidecar { workload, .. } => workload.clone(),
            Subject::Gateway { name, .. } => Some(name.name.to_string()),
        };
        let node = merlon_api::node(
            &self.start.node_id,
            workload.as_deref(),
            env!("CARGO_PKG_VERSION"),
        );
        subscriber.begin(node);
        let (requests, stream) = mpsc::channel(64);
        let mut client = AggregatedDiscoveryServiceClient::new(channel.clone())
            .max_decoding_message_size(MESSAGE);
        // The first messages wait in the channel: the server may answer the call only after it has read one.
        for request in subscriber.take_requests() {
            requests.try_send(request).map_err(|_| StreamEnd::Closed)?;
        }
        let opening = client.delta_aggregated_resources(ReceiverStream::new(stream));
        let answered = time::timeout(Duration::from_secs(10), opening).await;
        let answered =
            answered.unwrap_or_else(|_| Err(tonic::Status::deadline_exceeded("no answer in time")));
        let answered = answered.map_err(|status| StreamEnd::Status(Box::new(status)))?;
        Ok((channel, requests, answered.into_inner()))
    }

    async fn receive(
        &mut self,
        response: DeltaDiscoveryResponse,
        requests: &mpsc::Sender<DeltaDiscoveryRequest>,
    ) -> Result<(), StreamEnd> {
        let Some(subscriber) = &mut self.subscriber else {
            return Ok(());
        };
        let removed = subscriber.receive(response).map_err(StreamEnd::Protocol)?;
        for name in removed {
            self.answer(&name, &Err(LookupError::Unknown));
            if self.absent.len() >= ABSENT_NAMES {
                self.absent.retain(|_, until| *until > Instant::now());
            }
            if self.absent.len() < ABSENT_NAMES {
                self.absent.insert(name, Instant::now() + ABSENT);
            }
        }
        self.compile_if_complete();
        self.send_pending(requests).await
    }

    /// Compiles on another thread, one state at a time: what came meanwhile is looked at afterwards.
    fn compile_if_complete(&mut self) {
        let (None, Some(subscriber)) = (&self.compiling, &mut self.subscriber) else {
            return;
        };
        let Some(state) = subscriber.complete() else {
            return;
        };
        let assembler = self
            .assembler
            .get_or_insert_with(|| Arc::new(Assembler::new(subscriber.identity().clone())));
        let assembler = Arc::clone(assembler);
        let before = self.start.shared.snapshot.load_full();
        let secrets = self.start.secrets.clone();
        self.compiling = Some(task::spawn_blocking(move || {
            let before = before.as_ref().as_ref().map(Arc::as_ref);
            let result = assembler.assemble(state.version.clone(), &state.resources, before);
            hand_over(secrets.as_deref(), result.as_ref().ok());
            Compiled { state, result }
        }));
    }

    async fn compiled(
        &mut self,
        compiled: Option<Compiled>,
        requests: &mpsc::Sender<DeltaDiscoveryRequest>,
    ) -> Result<(), StreamEnd> {
        self.compiling = None;
        if let (Some(Compiled { state, result }), Some(subscriber)) =
            (compiled, &mut self.subscriber)
        {
            match result {
                Ok(snapshot) => {
                    subscriber.accept(&state);
                    self.keep(&state);
                    self.put_in_force(snapshot);
                }
                Err(error) => {
                    tracing::error!(version = state.version.short(), %error, "snapshot.rejected");
                    subscriber.refuse(&state, &error.to_string());
                    self.start.metrics.snapshots.inc(Update::Refused);
                }
            }
        }
        self.compile_if_complete();
        self.send_pending(requests).await
    }

    fn put_in_force(&mut self, snapshot: Snapshot) {
        let snapshot = Arc::new(snapshot);
        let count = i64::try_from(snapshot.resources.len()).unwrap_or(i64::MAX);
        tracing::info!(
            version = snapshot.version.short(),
            resources = count,
            "snapshot.accepted"
        );
        self.start.metrics.resources.set(count);
        self.start.metrics.snapshots.inc(Update::Accepted);
        self.start
            .shared
            .snapshot
            .publish(Some(Arc::clone(&snapshot)));
        self.start.shared.readiness.have(Unready::NoSnapshot);
        self.look_for_secrets(&snapshot);
        if self.subscriber.as_ref().is_some_and(Subscriber::is_current) {
            self.start.freshness.confirmed();
        }
        let waiting = self.waiting.keys();
        let now_there = waiting.filter_map(|key| Some((key.clone(), key.find(&snapshot)?)));
        for (key, found) in now_there.collect::<Vec<_>>() {
            self.answer(&key, &Ok(found));
        }
    }

    /// A program begins when its secrets are there. Once they were, nothing that is granted later stops it.
    fn look_for_secrets(&mut self, snapshot: &Snapshot) {
        let health = &self.start.shared.readiness;
        let missing = secrets::missing(&snapshot.workload.secrets, &snapshot.secrets);
        if self.has_secrets {
            return;
        }
        if missing.is_empty() {
            self.has_secrets = true;
            health.have(Unready::NoSecret);
            return;
        }
        if self.start.secrets.is_some() {
            let names: Vec<_> = missing.iter().map(ToString::to_string).collect();
            let message = format!(
                "secrets that were granted could not be read yet: {}; the status of the SecretGrant says why",
                names.join(", ")
            );
            health.lack(Unready::NoSecret, message);
        }
    }

    fn keep(&self, state: &Complete) {
        if let (Some(writer), Some(subscriber)) = (&self.writer, &self.subscriber) {
            writer.keep(subscriber.identity(), state, subscriber.asked_for());
        }
    }

    /// Takes up the last good state of an earlier process: the control plane may be away.
    async fn restore(&mut self) {
        let Some(state_dir) = self.start.state_dir.clone() else {
            return;
        };
        let workload = self.start.subject.identity().clone();
        let secrets = self.start.secrets.clone();
        let restored = task::spawn_blocking(move || {
            let Some((kept, state)) = SavedSnapshot::read(&state_dir, &workload)? else {
                return Ok(None);
            };
            let assembler = Assembler::new(kept.identity.clone());
            let result = assembler.assemble(state.version.clone(), &state.resources, None);
            hand_over(secrets.as_deref(), result.as_ref().ok());
            Ok::<_, saved::SavedSnapshotError>(Some((kept, assembler, Compiled { state, result })))
        });
        match restored.await {
            Ok(Ok(None)) => {}
            Ok(Ok(Some((
                kept,
                assembler,
                Compiled {
                    state,
                    result: Ok(snapshot),
                },
            )))) => {
                let mut subscriber = Subscriber::new(kept.identity);
                subscriber.restore(&state, kept.asked_for);
                self.subscriber = Some(subscriber);
                self.assembler = Some(Arc::new(assembler));
                self.start.freshness.restore(kept.confirmed);
                self.put_in_force(snapshot);
            }
            Ok(Ok(Some((
                _,
                _,
                Compiled {
                    result: Err(error), ..
                },
            )))) => {
                tracing::error!(%error, "snapshot.not_restored");
            }
            Ok(Err(error)) => tracing::error!(error = chain(&error), "snapshot.not_restored"),
            Err(error) => tracing::error!(%error, "snapshot.not_restored"),
        }
    }

    fn look_up(&mut self, request: LookupRequest) {
        let LookupRequest { key, reply } = request;
        let snapshot = self.start.shared.snapshot.load_full();
        let snapshot = snapshot.as_ref().as_ref();
        if let Some(found) = snapshot.and_then(|snapshot| key.find(snapshot)) {
            // In each of these sends, nobody waits any more when it fails.
            let _ = reply.send(Ok(found));
            return;
        }
        if self
            .absent
            .get(&key)
            .is_some_and(|until| *until > Instant::now())
        {
            let _ = reply.send(Err(LookupError::Unknown));
            return;
        }
        if let Some(subscriber) = &mut self.subscriber
            && !subscriber.subscribe_to(&key)
        {
            // Programs call all sorts of hosts outside; those that were are lookups for anew when they are called again.
            let addresses = snapshot.map(|snapshot| snapshot.addresses.iter());
            let outside = addresses.into_iter().flatten();
            let outside = outside.filter(|(_, state)| **state == AddressState::Outside);
            for (address, _) in outside.take(FORGOTTEN_AT_ONCE) {
                subscriber.forget(&LookupKey::Address(*address));
            }
            if !subscriber.subscribe_to(&key) {
                tracing::warn!(destination = %key, "subscriptions.limit_reached");
                let _ = reply.send(Err(LookupError::Unavailable));
                return;
            }
        }
        let waiting = self.waiting.entry(key).or_default();
        waiting.retain(|waiting| !waiting.is_closed());
        waiting.push(reply);
        if self.waiting.len() > ABSENT_NAMES {
            self.waiting
                .retain(|_, waiting| waiting.iter().any(|waiting| !waiting.is_closed()));
        }
    }

    fn answer(&mut self, key: &LookupKey, result: &LookupResult) {
        for waiting in self.waiting.remove(key).into_iter().flatten() {
            // Nobody waits any more when this fails.
            let _ = waiting.send(result.clone());
        }
    }

    async fn send_pending(
        &mut self,
        requests: &mpsc::Sender<DeltaDiscoveryRequest>,
    ) -> Result<(), StreamEnd> {
        let Some(subscriber) = &mut self.subscriber else {
            return Ok(());
        };
        if subscriber.is_current() {
            self.start.freshness.confirmed();
        } else {
            self.start.freshness.stale();
        }
        for request in subscriber.take_requests() {
            requests
                .send(request)
                .await
                .map_err(|_| StreamEnd::Closed)?;
        }
        Ok(())
    }
}

/// Lets the program have what it was granted.
fn hand_over(folder: Option<&SecretFolder>, snapshot: Option<&Snapshot>) {
    let Some(snapshot) = snapshot else {
        return;
    };
    let granted = &snapshot.workload.secrets;
    let Some(folder) = folder else {
        if granted.iter().any(|grant| grant.files.is_some()) {
            tracing::warn!(
                hint = "annotate the pod with `merlon.io/mount-secrets: \"true\"`, or set `--secrets-dir`",
                "secret.no_folder"
            );
        }
        return;
    };
    if let Err(error) = folder.write(granted, &snapshot.secrets) {
        tracing::error!(%error, "secret.not_written");
    }
}

type Opened = (
    Channel,
    mpsc::Sender<DeltaDiscoveryRequest>,
    Streaming<DeltaDiscoveryResponse>,
);

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Pending while nothing is compiled; `None` when the compilation itself failed.
async fn finished(compiling: &mut Option<JoinHandle<Compiled>>) -> Option<Compiled> {
    match compiling {
        Some(task) => task.await.ok(),
        None => std::future::pending().await,
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
