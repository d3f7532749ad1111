//! Every proxy that is, or was a moment ago, connected: what it was sent, what it said of it, how it is.

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
    name::{ServiceName, SpiffeId},
    snapshot::{ResourceKind, Version},
};
use serde::Serialize;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::{push::session::ProxyAck, telemetry::metrics::Metrics, transport::peer::PeerSvid};

/// How long a proxy that went away stays in the list.
const REMEMBERED: jiff::SignedDuration = jiff::SignedDuration::from_mins(60);
/// How many such proxies at most.
const MOST_GONE: usize = 1_000;
/// How long a proxy may take to answer a question; less than the patience of who asks us.
const PATIENCE: Duration = Duration::from_secs(4);

/// A proxy, as `GET /v1/proxies` tells of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ProxyStatus {
    /// Unique per process.
    pub id: String,
    /// Proved by its certificate.
    pub identity: String,
    /// The Workload or the Gateway, as `namespace/name`.
    pub workload: Option<ServiceName>,
    /// Whether it stands at the edge.
    pub gateway: bool,
    /// `pending` (was sent something and has not answered), `acknowledged`, `refused`, or `disconnected`.
    pub state: &'static str,
    /// Why it refused what it was sent last.
    pub reason: Option<String>,
    /// The state it enforces.
    pub snapshot_version: Option<Version>,
    /// The state it should enforce.
    pub sent_version: Option<Version>,
    /// For how long nothing confirmed the state it enforces, in seconds, by its own report; absent when it is gone.
    pub snapshot_age_seconds: Option<u64>,
    /// Serial number of its certificate, hexadecimal.
    pub certificate_serial: Option<String>,
    /// When its certificate ends.
    pub certificate_not_after: Option<Timestamp>,
    /// Whether it says that it is ready.
    pub ready: bool,
    /// Why not.
    pub not_ready_reason: Option<String>,
    /// Its program's version.
    pub version: String,
    /// From where it connected.
    pub address: String,
    /// Since when it is connected.
    pub connected_since: Option<Timestamp>,
    /// When it was last heard of.
    pub last_seen: Timestamp,
    /// Resources sent to it since it connected, manifests included.
    pub resources_sent: u64,
    /// The same by kind.
    pub resources_sent_by_kind: BTreeMap<ResourceKind, u64>,
    /// Names that it is subscribed to, by kind.
    pub subscriptions: BTreeMap<ResourceKind, usize>,
}

/// A connected proxy, as those see it who want to know what is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Enforcing {
    /// Its Workload or Gateway.
    pub(crate) name: ServiceName,
    /// The number of the snapshot.
    pub(crate) snapshot: u64,
    /// Why it does not take the newest.
    pub(crate) refusal: Option<String>,
}

/// Why a question got no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AskError {
    /// It was there.
    #[error("the proxy `{id}` is not connected: it was last seen at {last_seen}")]
    Away {
        /// Which.
        id: String,
        /// When.
        last_seen: Timestamp,
    },
    /// It is there and says nothing.
    #[error("the proxy `{0}` did not answer within {secs} seconds", secs = PATIENCE.as_secs())]
    TimedOut(String),
    /// It says that it cannot.
    #[error("the proxy `{id}` could not answer: {why}")]
    Failed {
        /// Which.
        id: String,
        /// Its own words.
        why: String,
    },
}

/// Puts questions to one proxy.
#[derive(Debug, Clone)]
pub(crate) struct Inspector(pub(crate) mpsc::Sender<(Ask, oneshot::Sender<Reply>)>);

/// All proxies. A name that a proxy gives itself counts only under its proved identity.
#[derive(Debug, Clone)]
pub(crate) struct Registry {
    inner: Arc<Mutex<Inner>>,
    metrics: Metrics,
    changed: Arc<Notify>,
}

type ProxyKey = (SpiffeId, String);

#[derive(Debug, Default)]
struct Inner {
    proxies: HashMap<ProxyKey, Record>,
    connections: u64,
}

#[derive(Debug)]
struct Record {
    status: ProxyStatus,
    refused: Option<Version>,
    /// The snapshot that it should enforce, and the last one that it is known to enforce.
    snapshots: (u64, u64),
    reported_at: Timestamp,
    /// The stream that this record follows; an older one that ends later is another's business.
    push: Option<u64>,
    inspector: Option<(u64, Inspector)>,
}

impl Registry {
    pub(crate) fn new(metrics: Metrics) -> Self {
        Self {
            inner: Arc::default(),
            metrics,
            changed: Arc::default(),
        }
    }

    /// Takes a proxy's delta stream into the list, until the returned value is dropped.
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
        let now = Timestamp::now();
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

    /// Takes a proxy's inspection stream into the list, until the returned value is dropped.
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

    /// All of them, by identity and id.
    pub(crate) fn list(&self) -> Vec<ProxyStatus> {
        let now = Timestamp::now();
        let mut list: Vec<_> = self
            .lock()
            .proxies
            .values()
            .map(|record| record.status_at(now))
            .collect();
        list.sort_by(|a, b| (&a.identity, &a.id).cmp(&(&b.identity, &b.id)));
        list
    }

    /// Every connected proxy with the last snapshot that it is known to enforce.
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

    /// Returns when what [`Registry::enforcing`] tells may have changed since it returned last. For one waiter.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// The proxy of an id, which is a node id or, where only one has it, `namespace/name` of its workload.
    pub(crate) fn find(&self, id: &str) -> Option<ProxyStatus> {
        let mut list = self.list();
        // One that is there before one that was.
        list.sort_by_key(|proxy| proxy.state == "disconnected");
        let by_id = list.iter().position(|proxy| proxy.id == id);
        let by_workload = || {
            let named = |p: &ProxyStatus| p.workload.as_ref().is_some_and(|w| w.to_string() == id);
            list.iter().position(named)
        };
        by_id.or_else(by_workload).map(|at| list.swap_remove(at))
    }

    /// Ids of the proxies whose decisions begin with `prefix`; more than one only if somebody wants it so.
    pub(crate) fn deciders(&self, prefix: &str) -> Vec<ProxyStatus> {
        let mut list = self.list();
        list.retain(|proxy| decision_prefix(&proxy.id) == prefix);
        list
    }

    /// Puts a question to a proxy.
    pub(crate) async fn ask(&self, proxy: &ProxyStatus, ask: Ask) -> Result<Reply, AskError> {
        let id = proxy.id.clone();
        let away = || AskError::Away {
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
        let reply = tokio::time::timeout(PATIENCE, asked).await;
        match reply.map_err(|_| AskError::TimedOut(id.clone()))?? {
            Reply::Error(why) => Err(AskError::Failed { id, why }),
            reply => Ok(reply),
        }
    }

    /// A proxy got a new certificate.
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
        // Every change below is a whole one, so a panic elsewhere left nothing half done.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn next(&mut self) -> u64 {
        self.connections += 1;
        self.connections
    }

    fn record(&mut self, key: &ProxyKey, peer: &PeerSvid, address: SocketAddr) -> &mut Record {
        let now = Timestamp::now();
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

    /// Who is gone for long, and of those who are gone the longest when there are too many.
    fn evict(&mut self, now: Timestamp) {
        let gone = |record: &Record| record.push.is_none() && record.inspector.is_none();
        self.proxies.retain(|_, record| {
            !gone(record) || now.duration_since(record.status.last_seen) < REMEMBERED
        });
        while self.proxies.values().filter(|record| gone(record)).count() >= MOST_GONE {
            let records = self.proxies.iter().filter(|(_, record)| gone(record));
            let oldest = records.min_by_key(|(_, record)| record.status.last_seen);
            let Some(oldest) = oldest.map(|(key, _)| key.clone()) else {
                break;
            };
            self.proxies.remove(&oldest);
        }
    }
}

impl Record {
    /// Who enforces the state that it should have enforces all that the snapshot of this state brought.
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
            // A live stream confirms it at this very moment, whatever the last report said.
            status.snapshot_age_seconds = Some(0);
        }
        if !connected {
            status.ready = false;
            // Nobody knows whether it still runs. `last_seen` tells since when.
            status.snapshot_age_seconds = None;
        }
        status
    }
}

/// A proxy's open delta stream.
#[derive(Debug)]
pub(crate) struct DiscoveryEntry {
    registry: Registry,
    key: ProxyKey,
    number: u64,
}

impl DiscoveryEntry {
    /// What it is, and what it should have.
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

    /// What it said.
    pub(crate) fn record_ack(&self, answer: ProxyAck) {
        self.update(|record| {
            record.status.last_seen = Timestamp::now();
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

    /// What was sent.
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
            record.status.last_seen = Timestamp::now();
            metrics.proxies.dec();
        });
        self.registry.changed.notify_one();
    }
}

/// A proxy's open inspection stream.
#[derive(Debug)]
pub(crate) struct InspectionEntry {
    registry: Registry,
    key: ProxyKey,
    number: u64,
}

impl InspectionEntry {
    /// How it says that it is.
    pub(crate) fn reported(&self, report: &Report) {
        let mut inner = self.registry.lock();
        let Some(record) = inner.proxies.get_mut(&self.key) else {
            return;
        };
        let text = |text: &str| -> Option<String> {
            (!text.is_empty()).then(|| text.chars().take(2_000).collect())
        };
        let now = Timestamp::now();
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
