//! The discovery client: one delta stream to the control plane, reopened when it breaks.
//!
//! [`subscriber`] implements the protocol without sockets, and [`crate::control::assemble`] compiles. This module
//! connects them: it opens the stream, waits, compiles on another thread, puts snapshots in force, and saves them.

mod lookups;
pub(crate) mod saved;
mod stream;
pub(crate) mod subscriber;

use std::{sync::Arc, time::Duration};

use merlon_api::{
    control_plane_id,
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
};
use merlon_certs::{H2, MeshTls};
use merlon_config::{causes::chain, name::Namespace};
use merlon_net::backoff::Backoff;
use tokio::{
    sync::mpsc,
    task::{self, JoinHandle},
    time::{self, Instant},
};
use url::Url;

use self::{
    lookups::Lookups,
    saved::{SavedSnapshot, Writer},
    stream::{AbortOnDrop, Opened, StreamEnd},
    subscriber::{Complete, Subscriber},
};
use super::{
    assemble::{AssembleError, Assembler},
    connection,
    identity::Renew,
    inspect,
    required_certificates::report_permissive,
    secret_folder::{self, SecretFolder},
    snapshot_age::SnapshotAge,
    state_dir::StateDir,
};
use crate::{
    config::Subject,
    state::{
        destinations::LookupRequest, readiness::Unready, secrets, shared::Shared,
        snapshot::Snapshot,
    },
    telemetry::metrics::{FetchResult, Metrics, Update},
};

/// The input of the discovery client.
#[derive(Debug)]
pub(crate) struct DiscoveryDeps {
    pub(crate) node_id: String,
    pub(crate) address: Url,
    pub(crate) root_namespace: Namespace,
    pub(crate) subject: Subject,
    pub(crate) state_dir: Option<Arc<StateDir>>,
    pub(crate) secrets: Option<Arc<SecretFolder>>,
    pub(crate) renew: Renew,
    pub(crate) snapshot_age: SnapshotAge,
    pub(crate) shared: Arc<Shared>,
    pub(crate) metrics: Arc<Metrics>,
}

/// Minimum and maximum delay between attempts to connect.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// A stream that lasted this long resets the back-off.
const RESET_AFTER: Duration = Duration::from_secs(5);

/// Delay before the stream is reopened with a new certificate, so that pending responses on the old one can finish.
const CHANGE: Duration = Duration::from_secs(2);

/// A manifest is rejected if its resources do not arrive within this time.
const COMPLETE_TIMEOUT: Duration = Duration::from_secs(10);

/// The discovery client.
#[derive(Debug)]
pub(crate) struct DiscoveryClient {
    deps: DiscoveryDeps,
    subscriber: Option<Subscriber>,
    assembler: Option<Arc<Assembler>>,
    compiling: Option<JoinHandle<Compiled>>,
    writer: Option<Writer>,
    lookups: Lookups,
    /// Whether all secrets of the program have been available once.
    has_secrets: bool,
}

#[derive(Debug)]
struct Compiled {
    state: Complete,
    result: Result<Snapshot, AssembleError>,
}

impl DiscoveryClient {
    pub(crate) fn new(deps: DiscoveryDeps) -> Self {
        Self {
            deps,
            subscriber: None,
            assembler: None,
            compiling: None,
            writer: None,
            lookups: Lookups::default(),
            has_secrets: false,
        }
    }

    /// Runs until the process ends.
    pub(crate) async fn run(mut self, mut lookups: mpsc::Receiver<LookupRequest>) {
        self.restore().await;
        let state_dir = self.deps.state_dir.clone();
        self.writer = state_dir.map(|folder| Writer::start(folder, &self.deps.metrics));
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let mut identities = self.deps.shared.identity.watch();
        loop {
            identities.borrow_and_update();
            let identity = self.deps.shared.identity.load_full();
            let Some(tls) = identity.as_ref() else {
                // Connecting requires a certificate.
                tokio::select! {
                    _ = identities.changed() => {}
                    Some(request) = lookups.recv() => self.look_up(request),
                }
                continue;
            };
            let opened = Instant::now();
            let end = self.stream(tls, &mut identities, &mut lookups).await;
            self.deps.metrics.connected.set(0);
            self.deps.snapshot_age.stale();
            let wait = match end {
                StreamEnd::Certificate => Duration::ZERO,
                end => {
                    tracing::warn!(
                        address = %self.deps.address,
                        error = chain(&end),
                        "control_plane.disconnected"
                    );
                    if opened.elapsed() > RESET_AFTER {
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

    /// Runs one stream until it ends.
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
        self.deps.metrics.connects.inc(result);
        let (channel, requests, mut responses) = match opened {
            Ok(opened) => opened,
            Err(end) => return end,
        };
        tracing::info!(address = %self.deps.address, "control_plane.connected");
        self.deps.metrics.connected.set(1);
        let inspection = tokio::spawn(inspect::serve(
            channel,
            inspect::Inspected {
                node_id: self.deps.node_id.clone(),
                shared: Arc::clone(&self.deps.shared),
                snapshot_age: self.deps.snapshot_age.clone(),
                renew: self.deps.renew.clone(),
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
            let incomplete = incomplete.map(|since| since + COMPLETE_TIMEOUT);
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
                    self.deps.metrics.snapshots.inc(Update::Refused);
                    if let Err(end) = self.send_pending(&requests).await {
                        break end;
                    }
                }
                Ok(()) = identities.changed() => {
                    let now = self.deps.shared.identity.load();
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
        let control_plane = control_plane_id(id.trust_domain(), &self.deps.root_namespace);
        let channel = connection::connect(
            &self.deps.address,
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
        // Lookups that were queued before the first stream.
        for name in self.lookups.waiting() {
            subscriber.subscribe_to(name);
        }
        let workload = match &self.deps.subject {
            Subject::Sidecar { workload, .. } => workload.clone(),
            Subject::Gateway { name, .. } => Some(name.name.to_string()),
        };
        let node = merlon_api::node(
            &self.deps.node_id,
            workload.as_deref(),
            env!("CARGO_PKG_VERSION"),
        );
        subscriber.begin(node);
        stream::open(channel, subscriber.take_requests()).await
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
            self.lookups.absent(name);
        }
        self.compile_if_complete();
        self.send_pending(requests).await
    }

    /// Compiles on another thread, one state at a time. Newer states wait until it is done.
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
        let before = self.deps.shared.snapshot.load_full();
        let secrets = self.deps.secrets.clone();
        self.compiling = Some(task::spawn_blocking(move || {
            let before = before.as_ref().as_ref().map(Arc::as_ref);
            let result = assembler.assemble(state.version.clone(), &state.resources, before);
            secret_folder::write_granted(secrets.as_deref(), result.as_ref().ok());
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
                Ok(snapshot) if subscriber.accept(&state) => {
                    self.save(&state);
                    self.put_in_force(snapshot);
                }
                Ok(_) => {
                    tracing::debug!(version = state.version.short(), "snapshot.withdrawn");
                    self.restore_secrets().await;
                }
                Err(error) => {
                    tracing::error!(version = state.version.short(), %error, "snapshot.rejected");
                    subscriber.refuse(&state, &error.to_string());
                    self.deps.metrics.snapshots.inc(Update::Refused);
                }
            }
        }
        self.compile_if_complete();
        self.send_pending(requests).await
    }

    /// Writes the secrets of the state in force again, after those of a state that was withdrawn.
    async fn restore_secrets(&self) {
        let snapshot = self.deps.shared.snapshot.load_full();
        let folder = self.deps.secrets.clone();
        let written = task::spawn_blocking(move || {
            let snapshot = snapshot.as_ref().as_ref().map(Arc::as_ref);
            secret_folder::write_granted(folder.as_deref(), snapshot);
        });
        // Fails only while the process ends.
        let _ = written.await;
    }

    fn put_in_force(&mut self, snapshot: Snapshot) {
        let snapshot = Arc::new(snapshot);
        let count = i64::try_from(snapshot.resources.len()).unwrap_or(i64::MAX);
        tracing::info!(
            version = snapshot.version.short(),
            resources = count,
            "snapshot.accepted"
        );
        report_permissive(&self.deps.shared, &snapshot);
        self.deps.metrics.resources.set(count);
        self.deps.metrics.snapshots.inc(Update::Accepted);
        self.deps
            .shared
            .snapshot
            .publish(Some(Arc::clone(&snapshot)));
        self.deps
            .shared
            .readiness
            .remove_reason(Unready::NoSnapshot);
        self.update_secret_readiness(&snapshot);
        if self.subscriber.as_ref().is_some_and(Subscriber::is_current) {
            self.deps.snapshot_age.confirmed();
        }
        self.lookups.answer_from(&snapshot);
    }

    /// The proxy is not ready until all granted secrets have been read once. Later grants do not change that.
    fn update_secret_readiness(&mut self, snapshot: &Snapshot) {
        let health = &self.deps.shared.readiness;
        let missing = secrets::missing(&snapshot.workload.secrets, &snapshot.secrets);
        if self.has_secrets {
            return;
        }
        if missing.is_empty() {
            self.has_secrets = true;
            health.remove_reason(Unready::NoSecret);
            return;
        }
        if self.deps.secrets.is_some() {
            let names: Vec<_> = missing.iter().map(ToString::to_string).collect();
            let message = format!(
                "granted secrets have not been read yet: {}; see the status of the SecretGrant",
                names.join(", ")
            );
            health.add_reason(Unready::NoSecret, message);
        }
    }

    fn save(&self, state: &Complete) {
        if let (Some(writer), Some(subscriber)) = (&self.writer, &self.subscriber) {
            writer.save(subscriber.identity(), state, subscriber.lookups());
        }
    }

    /// Restores the last good state of an earlier process, since the control plane may be unreachable.
    async fn restore(&mut self) {
        let Some(state_dir) = self.deps.state_dir.clone() else {
            return;
        };
        let workload = self.deps.subject.identity().clone();
        let secrets = self.deps.secrets.clone();
        let restored = task::spawn_blocking(move || {
            let Some((saved, state)) = SavedSnapshot::read(&state_dir, &workload)? else {
                return Ok(None);
            };
            let assembler = Assembler::new(saved.identity.clone());
            let result = assembler.assemble(state.version.clone(), &state.resources, None);
            secret_folder::write_granted(secrets.as_deref(), result.as_ref().ok());
            Ok::<_, saved::SavedSnapshotError>(Some((saved, assembler, Compiled { state, result })))
        });
        match restored.await {
            Ok(Ok(None)) => {}
            Ok(Ok(Some((
                saved,
                assembler,
                Compiled {
                    state,
                    result: Ok(snapshot),
                },
            )))) => {
                let mut subscriber = Subscriber::new(saved.identity);
                subscriber.restore(&state, saved.asked_for);
                self.subscriber = Some(subscriber);
                self.assembler = Some(Arc::new(assembler));
                self.deps.snapshot_age.restore(saved.confirmed);
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
        let snapshot = self.deps.shared.snapshot.load_full();
        let snapshot = snapshot.as_ref().as_deref();
        let subscriber = self.subscriber.as_mut();
        self.lookups.begin(request, snapshot, subscriber);
    }

    async fn send_pending(
        &mut self,
        requests: &mpsc::Sender<DeltaDiscoveryRequest>,
    ) -> Result<(), StreamEnd> {
        let Some(subscriber) = &mut self.subscriber else {
            return Ok(());
        };
        if subscriber.is_current() {
            self.deps.snapshot_age.confirmed();
        } else {
            self.deps.snapshot_age.stale();
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

/// Pending if nothing is being compiled; `None` if the compilation panicked.
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
