//! The registry of proxies that are or recently were connected: what each was sent, its response, and its status.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use merlon_api::{
    decision_prefix,
    inspection::{Ask, Reply, Report},
};
use merlon_config::{
    clock,
    name::{ServiceName, SpiffeId},
    snapshot::{ResourceKind, Version},
};
use serde::Serialize;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::{
    limits::RegistryLimits, push::session::ProxyAck, telemetry::metrics::Metrics,
    transport::peer::PeerSvid,
};

/// The status of a proxy, as `GET /v1/proxies` returns it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ProxyStatus {
    /// Unique per process.
    pub id: String,
    /// The identity in its certificate.
    pub identity: String,
    /// The Workload or the Gateway, as `namespace/name`.
    pub workload: Option<ServiceName>,
    /// Whether it is a gateway.
    pub gateway: bool,
    /// `pending` (has not responded to the last push), `acknowledged`, `refused`, or `disconnected`.
    pub state: &'static str,
    /// Why it rejected the last push.
    pub reason: Option<String>,
    /// The state it enforces.
    pub snapshot_version: Option<Version>,
    /// The state it should enforce.
    pub sent_version: Option<Version>,
    /// Seconds since the enforced state was last confirmed, by the proxy's report; absent when it is disconnected.
    pub snapshot_age_seconds: Option<u64>,
    /// Serial number of its certificate, hexadecimal.
    pub certificate_serial: Option<String>,
    /// When its certificate expires.
    pub certificate_not_after: Option<Timestamp>,
    /// Whether it reports that it is ready.
    pub ready: bool,
    /// Why it is not ready.
    pub not_ready_reason: Option<String>,
    /// The version of its program.
    pub version: String,
    /// The address that it connected from.
    pub address: String,
    /// Since when it is connected.
    pub connected_since: Option<Timestamp>,
    /// When it last sent a message.
    pub last_seen: Timestamp,
    /// Resources sent to it since it connected, manifests included.
    pub resources_sent: u64,
    /// `resources_sent` by kind.
    pub resources_sent_by_kind: BTreeMap<ResourceKind, u64>,
    /// The number of names that it is subscribed to, by kind.
    pub subscriptions: BTreeMap<ResourceKind, usize>,
}

/// What a connected proxy enforces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Enforcing {
    /// Its Workload or Gateway.
    pub(crate) name: ServiceName,
    /// The number of the newest snapshot that it is known to enforce.
    pub(crate) snapshot: u64,
    /// Why it rejects the newest snapshot.
    pub(crate) refusal: Option<String>,
}

/// Why a request to a proxy failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AskError {
    /// The proxy is not connected.
    #[error("the proxy `{id}` is not connected: it was last seen at {last_seen}")]
    Disconnected {
        /// The id of the proxy.
        id: String,
        /// When it last sent a message.
        last_seen: Timestamp,
    },
    /// The proxy is connected and did not answer in time.
    #[error("the proxy `{id}` did not answer within {} seconds", timeout.as_secs_f64())]
    TimedOut {
        /// The id of the proxy.
        id: String,
        /// The time-out.
        timeout: Duration,
    },
    /// The proxy returned an error.
    #[error("the proxy `{id}` could not answer: {why}")]
    Failed {
        /// The id of the proxy.
        id: String,
        /// The error of the proxy.
        why: String,
    },
}

/// Sends requests to one proxy.
#[derive(Debug, Clone)]
pub(crate) struct Inspector(pub(crate) mpsc::Sender<(Ask, oneshot::Sender<Reply>)>);

/// All proxies. The node id that a proxy chooses is only valid within its authenticated identity.
#[derive(Debug, Clone)]
pub(crate) struct Registry {
    inner: Arc<Mutex<Inner>>,
    metrics: Metrics,
    /// The time-out of a request to a proxy.
    timeout: Duration,
    changed: Arc<Notify>,
}

type ProxyKey = (SpiffeId, String);

#[derive(Debug)]
struct Inner {
    limits: RegistryLimits,
    proxies: HashMap<ProxyKey, Record>,
    connections: u64,
}

#[derive(Debug)]
struct Record {
    status: ProxyStatus,
    refused: Option<Version>,
    /// The numbers of the snapshot that it should enforce, and of the last one that it is known to enforce.
    snapshots: (u64, u64),
    reported_at: Timestamp,
    /// The current discovery stream. An older stream that ends later does not change this record.
    push: Option<u64>,
    inspector: Option<(u64, Inspector)>,
}

impl Registry {
    pub(crate) fn new(metrics: Metrics, limits: RegistryLimits, timeout: Duration) -> Self {
        let inner = Inner {
            limits,
            proxies: HashMap::new(),
            connections: 0,
        };
        Self {
            inner: Arc::new(Mutex::new(inner)),
            metrics,
            timeout,
            changed: Arc::default(),
        }
    }

    /// Registers a discovery stream, until the returned value is dropped.
    pub(crate) fn connect(
        &self,
        peer: &PeerSvid,
        address: SocketAddr,
        node_id: &str,
        version: &str,
    ) -> DiscoveryEntry {
        let key = (peer.id.clone(), node_id.to_owned());
        let mut inner = self.lock();
        let number = inner.next();
        let record = inner.record(&key, peer, address);
        if record.push.replace(number).is_none() {
            self.metrics.proxies.inc();
        }
        let now = clock::now();
        let status = &mut record.status;
        version.clone_into(&mut status.version);
        status.connected_since = Some(now);
        status.last_seen = now;
        status.resources_sent = 0;
        status.resources_sent_by_kind.clear();
        drop(inner);
        DiscoveryEntry {
            registry: self.clone(),
            key,
            number,
        }
    }

    /// Registers an inspection stream, until the returned value is dropped.
    pub(crate) fn inspect(
        &self,
        peer: &PeerSvid,
        address: SocketAddr,
        node_id: &str,
        inspector: Inspector,
    ) -> InspectionEntry {
        let key = (peer.id.clone(), node_id.to_owned());
        let mut inner = self.lock();
        let number = inner.next();
        inner.record(&key, peer, address).inspector = Some((number, inspector));
        drop(inner);
        InspectionEntry {
            registry: self.clone(),
            key,
            number,
        }
    }

    /// All proxies, sorted by identity and id.
    pub(crate) fn list(&self) -> Vec<ProxyStatus> {
        let now = clock::now();
        let mut list: Vec<_> = self
            .lock()
            .proxies
            .values()
            .map(|record| record.status_at(now))
            .collect();
        list.sort_by(|a, b| (&a.identity, &a.id).cmp(&(&b.identity, &b.id)));
        list
    }

    /// What every connected proxy enforces.
    pub(crate) fn enforcing(&self) -> Vec<Enforcing> {
        let inner = self.lock();
        let connected = inner
            .proxies
            .values()
            .filter(|record| record.push.is_some());
        connected
            .filter_map(|record| {
                let refuses =
                    record.refused.is_some() && record.refused == record.status.sent_version;
                Some(Enforcing {
                    name: record.status.workload.clone()?,
                    snapshot: record.snapshots.1,
                    refusal: record.status.reason.clone().filter(|_| refuses),
                })
            })
            .collect()
    }

    /// Waits until the result of [`Registry::enforcing`] may have changed. Only one task may wait.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Finds a proxy by its node id, or by `namespace/name` of its workload.
    pub(crate) fn find(&self, id: &str) -> Option<ProxyStatus> {
        let mut list = self.list();
        // Connected proxies come first.
        list.sort_by_key(|proxy| proxy.state == "disconnected");
        let by_id = list.iter().position(|proxy| proxy.id == id);
        let by_workload = || {
            let named = |p: &ProxyStatus| p.workload.as_ref().is_some_and(|w| w.to_string() == id);
            list.iter().position(named)
        };
        by_id.or_else(by_workload).map(|at| list.swap_remove(at))
    }

    /// The proxies whose decision ids begin with `prefix`. There is more than one only if a proxy forges its node id.
    pub(crate) fn deciders(&self, prefix: &str) -> Vec<ProxyStatus> {
        let mut list = self.list();
        list.retain(|proxy| decision_prefix(&proxy.id) == prefix);
        list
    }

    /// Sends a request to a proxy and waits for the reply.
    pub(crate) async fn ask(&self, proxy: &ProxyStatus, ask: Ask) -> Result<Reply, AskError> {
        let id = proxy.id.clone();
        let away = || AskError::Disconnected {
            id: id.clone(),
            last_seen: proxy.last_seen,
        };
        let inspector = {
            let inner = self.lock();
            let mut records = inner.proxies.values();
            let same = |r: &&Record| r.status.id == proxy.id && r.status.identity == proxy.identity;
            records
                .find(same)
                .and_then(|record| record.inspector.clone())
        };
        let (_, inspector) = inspector.ok_or_else(away)?;
        let (answer, answered) = oneshot::channel();
        let asked = async {
            inspector.0.send((ask, answer)).await.map_err(|_| away())?;
            answered.await.map_err(|_| away())
        };
        let timeout = self.timeout;
        let reply = tokio::time::timeout(timeout, asked).await;
        let timed_out = || AskError::TimedOut {
            id: id.clone(),
            timeout,
        };
        match reply.map_err(|_| timed_out())?? {
            Reply::Error(why) => Err(AskError::Failed { id, why }),
            reply => Ok(reply),
        }
    }

    /// Records a new certificate of a proxy.
    pub(crate) fn certified(
        &self,
        identity: &SpiffeId,
        node_id: &str,
        serial: &str,
        end: Timestamp,
    ) {
        let key = (identity.clone(), node_id.to_owned());
        if let Some(record) = self.lock().proxies.get_mut(&key) {
            record.status.certificate_serial = Some(serial.to_owned());
            record.status.certificate_not_after = Some(end);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Each change under this lock is complete, so a panic elsewhere leaves a consistent state.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn next(&mut self) -> u64 {
        self.connections += 1;
        self.connections
    }

    fn record(&mut self, key: &ProxyKey, peer: &PeerSvid, address: SocketAddr) -> &mut Record {
        let now = clock::now();
        if !self.proxies.contains_key(key) {
            self.evict(now);
        }
        let record = self.proxies.entry(key.clone()).or_insert_with(|| Record {
            status: ProxyStatus {
                id: key.1.clone(),
                identity: key.0.to_string(),
                workload: None,
                gateway: false,
                state: "pending",
                reason: None,
                snapshot_version: None,
                sent_version: None,
                snapshot_age_seconds: None,
                certificate_serial: None,
                certificate_not_after: None,
                ready: false,
                not_ready_reason: None,
                version: String::new(),
                address: String::new(),
                connected_since: None,
                last_seen: now,
                resources_sent: 0,
                resources_sent_by_kind: BTreeMap::new(),
                subscriptions: BTreeMap::new(),
            },
            refused: None,
            snapshots: (0, 0),
            reported_at: now,
            push: None,
            inspector: None,
        });
        record.status.address = address.to_string();
        record.status.last_seen = now;
        record.status.certificate_serial = Some(peer.serial.clone());
        record.status.certificate_not_after = Some(peer.not_after);
        record
    }

    /// Evicts proxies that have been disconnected for long, and the oldest ones if there are too many.
    fn evict(&mut self, now: Timestamp) {
        let disconnected = |record: &Record| record.push.is_none() && record.inspector.is_none();
        let limits = self.limits;
        self.proxies.retain(|_, record| {
            let age = Duration::try_from(now.duration_since(record.status.last_seen));
            !disconnected(record) || age.unwrap_or_default() < limits.retention
        });
        while self
            .proxies
            .values()
            .filter(|record| disconnected(record))
            .count()
            >= limits.disconnected
        {
            let records = self
                .proxies
                .iter()
                .filter(|(_, record)| disconnected(record));
            let oldest = records.min_by_key(|(_, record)| record.status.last_seen);
            let Some(oldest) = oldest.map(|(key, _)| key.clone()) else {
                break;
            };
            self.proxies.remove(&oldest);
        }
    }
}

impl Record {
    /// A proxy that enforces the sent version enforces the snapshot that it was computed from.
    fn compare(&mut self) {
        let status = &self.status;
        if status.sent_version.is_some() && status.sent_version == status.snapshot_version {
            self.snapshots.1 = self.snapshots.0;
        }
    }

    fn status_at(&self, now: Timestamp) -> ProxyStatus {
        let mut status = self.status.clone();
        let connected = self.push.is_some();
        status.state = match &status.sent_version {
            _ if !connected => "disconnected",
            sent if sent.is_some() && *sent == self.refused => "refused",
            sent if sent.is_some() && *sent == status.snapshot_version => "acknowledged",
            _ => "pending",
        };
        if status.state != "refused" {
            status.reason = None;
        }
        let since = now.duration_since(self.reported_at).as_secs();
        let since = u64::try_from(since).unwrap_or(0);
        status.snapshot_age_seconds = status
            .snapshot_age_seconds
            .map(|age| age.saturating_add(since));
        if connected && status.state == "acknowledged" {
            // An open stream confirms the state now, regardless of the last report.
            status.snapshot_age_seconds = Some(0);
        }
        if !connected {
            status.ready = false;
            // It is unknown whether it still runs. `last_seen` has the time of its last message.
            status.snapshot_age_seconds = None;
        }
        status
    }
}

/// The registration of an open discovery stream.
#[derive(Debug)]
pub(crate) struct DiscoveryEntry {
    registry: Registry,
    key: ProxyKey,
    number: u64,
}

impl DiscoveryEntry {
    /// Records the workload of the proxy and the state that it should enforce.
    pub(crate) fn set_expected(
        &self,
        workload: Option<(&ServiceName, bool)>,
        version: Option<&Version>,
        subscriptions: BTreeMap<ResourceKind, usize>,
        snapshot: u64,
    ) {
        self.update(|record| {
            if let Some((name, gateway)) = workload {
                record.status.workload = Some(name.clone());
                record.status.gateway = gateway;
            }
            record.status.sent_version = version.cloned();
            record.status.subscriptions = subscriptions;
            record.snapshots.0 = snapshot;
            record.compare();
        });
        self.registry.changed.notify_one();
    }

    /// Records the response of the proxy.
    pub(crate) fn record_ack(&self, answer: ProxyAck) {
        self.update(|record| {
            record.status.last_seen = clock::now();
            match answer {
                ProxyAck::Acknowledged(version) => {
                    record.status.snapshot_version = Some(version);
                    record.refused = None;
                    record.compare();
                }
                ProxyAck::Refused(version, reason) => {
                    record.status.reason = Some(reason);
                    record.refused = version.or_else(|| record.status.sent_version.clone());
                }
            }
        });
        self.registry.changed.notify_one();
    }

    /// Records the resources that were sent.
    pub(crate) fn sent(&self, kind: ResourceKind, resources: usize) {
        self.registry.metrics.sent(kind, resources);
        let resources = u64::try_from(resources).unwrap_or(u64::MAX);
        self.update(|record| {
            record.status.resources_sent += resources;
            *record
                .status
                .resources_sent_by_kind
                .entry(kind)
                .or_default() += resources;
        });
    }

    fn update(&self, change: impl FnOnce(&mut Record)) {
        if let Some(record) = self.registry.lock().proxies.get_mut(&self.key)
            && record.push == Some(self.number)
        {
            change(record);
        }
    }
}

impl Drop for DiscoveryEntry {
    fn drop(&mut self) {
        let metrics = self.registry.metrics.clone();
        self.update(|record| {
            record.push = None;
            record.status.connected_since = None;
            record.status.last_seen = clock::now();
            metrics.proxies.dec();
        });
        self.registry.changed.notify_one();
    }
}

/// The registration of an open inspection stream.
#[derive(Debug)]
pub(crate) struct InspectionEntry {
    registry: Registry,
    key: ProxyKey,
    number: u64,
}

impl InspectionEntry {
    /// Records a report of the proxy.
    pub(crate) fn reported(&self, report: &Report) {
        let mut inner = self.registry.lock();
        let Some(record) = inner.proxies.get_mut(&self.key) else {
            return;
        };
        let text = |text: &str| -> Option<String> {
            (!text.is_empty()).then(|| text.chars().take(2_000).collect())
        };
        let now = clock::now();
        record.reported_at = now;
        let status = &mut record.status;
        status.last_seen = now;
        status.ready = report.ready;
        status.not_ready_reason = text(&report.not_ready_reason);
        status.snapshot_age_seconds = Some(report.snapshot_age_seconds);
        if let Some(serial) = text(&report.certificate_serial) {
            status.certificate_serial = Some(serial);
            status.certificate_not_after =
                Timestamp::from_second(report.certificate_not_after).ok();
        }
    }
}

impl Drop for InspectionEntry {
    fn drop(&mut self) {
        if let Some(record) = self.registry.lock().proxies.get_mut(&self.key) {
            record
                .inspector
                .take_if(|(number, _)| *number == self.number);
        }
    }
}
