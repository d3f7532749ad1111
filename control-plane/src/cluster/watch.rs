//! The state of the cluster: one watch for each kind of object that Merlon needs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::{
    core::v1::{ConfigMap, Namespace, Pod, Secret, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client, Resource,
    api::{ApiResource, DynamicObject},
    core::Status,
    runtime::{
        WatchStreamExt as _,
        reflector::{Lookup, Store, store::Writer},
        utils::Backoff,
        watcher::{self, Event, watcher},
    },
};
use merlon_config::clock;
use merlon_config::crd::{self, CLUSTER_KINDS, Kind};
use serde::de::DeserializeOwned;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use merlon_net::backoff;

use super::{gateway_api, names, pods::meshed};
use crate::tasks::Tasks;

/// Everything that is watched.
#[derive(Debug, Clone)]
pub(crate) struct Cluster {
    /// Pods with a proxy.
    pub(crate) pods: Store<Pod>,
    pub(crate) services: Store<Service>,
    pub(crate) slices: Store<EndpointSlice>,
    pub(crate) namespaces: Store<Namespace>,
    /// The trust bundle of each namespace.
    pub(crate) bundles: Store<ConfigMap>,
    /// The counts of each replica.
    pub(crate) counts: Store<ConfigMap>,
    /// Deleted resources that stay in force.
    pub(crate) retained: Store<ConfigMap>,
    pub(crate) kinds: Vec<(Kind, Store<DynamicObject>)>,
    /// `Some` if Gateway API is served.
    pub(crate) gateways: Option<Gateways>,
    pub(crate) contact: Contact,
    changes: watch::Receiver<u64>,
}

/// What is watched only for gateways.
#[derive(Debug, Clone)]
pub(crate) struct Gateways {
    pub(crate) classes: Store<DynamicObject>,
    pub(crate) gateways: Store<DynamicObject>,
    pub(crate) routes: Store<DynamicObject>,
    pub(crate) grants: Store<DynamicObject>,
    /// Secrets of type `kubernetes.io/tls` in the control plane's namespace.
    pub(crate) secrets: Store<Secret>,
    /// The control plane's namespace.
    pub(crate) namespace: String,
}

impl Gateways {
    fn watch(watching: &Watching<'_>, client: &Client, namespace: &str) -> Self {
        let [classes, gateways, routes, grants] = gateway_api::KINDS.map(|kind| {
            let resource = gateway_api::resource_of(kind);
            let api = Api::all_with(client.clone(), &resource);
            let watching = Watching {
                may_be_absent: true,
                ..watching.clone()
            };
            watching.follow(kind.1, api, resource, watcher::Config::default(), any)
        });
        let certificates = watcher::Config::default().fields("type=kubernetes.io/tls");
        let secrets = Api::namespaced(client.clone(), namespace);
        Self {
            classes,
            gateways,
            routes,
            grants,
            secrets: watching.follow("secrets", secrets, (), certificates, any),
            namespace: namespace.to_owned(),
        }
    }
}

impl Cluster {
    /// Starts all watches; `shutdown` stops them. `gateways` includes Gateway API.
    pub(crate) fn watch(
        client: &Client,
        (own_namespace, gateways): (&str, bool),
        contact: Contact,
        tasks: &Tasks,
        shutdown: &CancellationToken,
    ) -> Self {
        let (changed, changes) = watch::channel(0);
        let watching = Watching {
            contact: contact.clone(),
            changed: Arc::new(changed),
            tasks,
            shutdown,
            may_be_absent: false,
        };
        let all = watcher::Config::default();
        let bundles = all
            .clone()
            .fields(&format!("metadata.name={}", names::TRUST_BUNDLE));
        let counts = all.clone().labels(names::REPLICA_LABEL);
        let retained = all.clone().labels(names::RETAINED_LABEL);
        let kinds = CLUSTER_KINDS.iter().map(|kind| {
            let resource = resource_of(kind);
            let api = Api::all_with(client.clone(), &resource);
            let config = watcher::Config::default();
            (
                *kind,
                watching.follow(kind.plural, api, resource, config, any),
            )
        });
        let kinds = kinds.collect();
        Self {
            pods: watching.follow("pods", Api::all(client.clone()), (), all.clone(), meshed),
            services: watching.follow("services", Api::all(client.clone()), (), all.clone(), any),
            slices: watching.follow(
                "endpointslices",
                Api::all(client.clone()),
                (),
                all.clone(),
                any,
            ),
            namespaces: watching.follow("namespaces", Api::all(client.clone()), (), all, any),
            bundles: watching.follow("trust bundles", Api::all(client.clone()), (), bundles, any),
            counts: watching.follow(
                "replicas",
                Api::namespaced(client.clone(), own_namespace),
                (),
                counts,
                any,
            ),
            retained: watching.follow(
                "retained resources",
                Api::namespaced(client.clone(), own_namespace),
                (),
                retained,
                any,
            ),
            kinds,
            gateways: gateways.then(|| Gateways::watch(&watching, client, own_namespace)),
            contact,
            changes,
        }
    }

    /// A receiver that changes with every object.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }
}

pub(crate) fn resource_of(kind: &Kind) -> ApiResource {
    ApiResource {
        group: crd::GROUP.to_owned(),
        version: crd::VERSION.to_owned(),
        api_version: format!("{}/{}", crd::GROUP, crd::VERSION),
        kind: kind.kind.to_owned(),
        plural: kind.plural.to_owned(),
    }
}

fn any<K>(_: &K) -> bool {
    true
}

#[derive(Clone)]
struct Watching<'a> {
    contact: Contact,
    changed: Arc<watch::Sender<u64>>,
    tasks: &'a Tasks,
    shutdown: &'a CancellationToken,
    /// Whether the kind may be missing in the cluster. It then counts as empty.
    may_be_absent: bool,
}

impl Watching<'_> {
    fn follow<K>(
        &self,
        what: &'static str,
        api: Api<K>,
        dynamic: <K as Resource>::DynamicType,
        config: watcher::Config,
        keep: fn(&K) -> bool,
    ) -> Store<K>
    where
        K: Resource + Lookup<DynamicType = <K as Resource>::DynamicType>,
        K: Clone + DeserializeOwned + Debug + Send + Sync + 'static,
        <K as Resource>::DynamicType: Eq + Hash + Clone + Send + Sync,
    {
        let mut writer = Writer::new(dynamic);
        let store = writer.as_reader();
        self.contact.expect_list(what);
        let (contact, changed) = (self.contact.clone(), Arc::clone(&self.changed));
        let shutdown = self.shutdown.clone();
        let may_be_absent = self.may_be_absent;
        self.tasks.spawn_lasting(what, async move {
            let mut events = watcher(api, config).backoff(Pauses(0)).boxed();
            loop {
                let event = tokio::select! {
                    event = events.next() => event,
                    () = shutdown.cancelled() => return,
                };
                match event {
                    Some(Ok(event)) => {
                        // `managedFields` are half of the bytes of an object, and not needed.
                        let event = event.modify(|object| object.meta_mut().managed_fields = None);
                        if let Event::Apply(object) | Event::InitApply(object) = &event
                            && !keep(object)
                        {
                            continue;
                        }
                        writer.apply_watcher_event(&event);
                        match event {
                            Event::Init | Event::InitApply(_) => continue,
                            Event::InitDone => {
                                contact.mark_synced(what);
                            }
                            Event::Apply(_) | Event::Delete(_) => {}
                        }
                        contact.set_problem(what, None);
                        changed.send_modify(|count| *count += 1);
                    }
                    Some(Err(error)) => match status_of(&error) {
                        Some(status) if may_be_absent && status.code == 404 => {
                            if contact.mark_synced(what) {
                                tracing::warn!(
                                    what,
                                    hint = "no gateway is served until the Gateway API definitions are installed",
                                    "cluster.kind_missing"
                                );
                                changed.send_modify(|count| *count += 1);
                            }
                        }
                        Some(status) => contact.set_problem_of(what, "watched", status),
                        None => contact.unreachable(&format!("watching {what}: {error}")),
                    },
                    None => return,
                }
            }
        });
        store
    }
}

/// The status that the API server returned, if it answered.
fn status_of(error: &watcher::Error) -> Option<&Status> {
    use watcher::Error::{InitialListFailed, WatchError, WatchFailed, WatchStartFailed};
    match error {
        InitialListFailed(kube::Error::Api(status))
        | WatchStartFailed(kube::Error::Api(status))
        | WatchFailed(kube::Error::Api(status))
        | WatchError(status) => Some(status),
        _ => None,
    }
}

/// Exponential back-off with jitter, at most 5 s: after an outage a replica only reads about ten lists.
struct Pauses(u32);

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let longest = Duration::from_millis(250)
            .saturating_mul(1 << self.0.min(16))
            .min(Duration::from_secs(5));
        self.0 = self.0.saturating_add(1);
        Some(longest.mul_f64(0.5 + backoff::unit() / 2.0))
    }
}

impl Backoff for Pauses {
    fn reset(&mut self) {
        self.0 = 0;
    }
}

/// Whether every list was read once, and whether the cluster still answers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Contact(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    missing: BTreeSet<&'static str>,
    /// Why there is no mesh yet, although nothing is missing.
    waiting: Option<String>,
    /// Why the webhooks cannot be called yet.
    webhooks: Option<String>,
    outage: Option<Outage>,
    /// The API server's message for each kind that cannot be watched or called.
    problems: BTreeMap<&'static str, String>,
}

/// Whether the API server rejected a call, rather than being overloaded or broken.
pub(super) fn is_refusal(status: &Status) -> bool {
    status.code < 500 && status.code != 429
}

/// An outage of the cluster.
#[derive(Debug)]
struct Outage {
    since: Timestamp,
    /// The same time by the monotonic clock.
    at: Instant,
    why: String,
}

impl Contact {
    /// Why no proxy can be served yet.
    pub(crate) fn not_ready(&self) -> Option<String> {
        let state = self.lock();
        let missing: Vec<&str> = state.missing.iter().copied().collect();
        if missing.is_empty() {
            return state.waiting.clone().or_else(|| state.webhooks.clone());
        }
        let mut problems = state.problems.iter();
        let problem = problems.find(|(what, _)| state.missing.contains(*what));
        let problem = problem.map(|(_, why)| why.clone());
        let why = problem.or_else(|| state.outage.as_ref().map(|outage| outage.why.clone()));
        let why = why.map(|why| format!(": {why}")).unwrap_or_default();
        let missing = missing.join(", ");
        Some(format!(
            "the first list of these kinds is not complete: {missing}{why}"
        ))
    }

    /// Why something cannot be watched or called, although the cluster answers.
    pub(crate) fn problem(&self) -> Option<String> {
        let state = self.lock();
        let all: Vec<&str> = state.problems.values().map(String::as_str).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// Whether the list of a kind was read once.
    pub(crate) fn is_listed(&self, what: &str) -> bool {
        !self.lock().missing.contains(what)
    }

    /// Whether every list was read once.
    pub(crate) fn is_synced(&self) -> bool {
        self.lock().missing.is_empty()
    }

    /// Since when the cluster does not answer, and why.
    pub(crate) fn outage(&self) -> Option<(Timestamp, String)> {
        let state = self.lock();
        let outage = state.outage.as_ref()?;
        Some((outage.since, outage.why.clone()))
    }

    /// How long the cluster has not answered.
    pub(crate) fn outage_duration(&self) -> Option<Duration> {
        Some(self.lock().outage.as_ref()?.at.elapsed())
    }

    /// Sets or clears a reason, other than the cluster, why there is no mesh yet.
    pub(crate) fn set_waiting(&self, why: Option<String>) {
        self.lock().waiting = why;
    }

    /// Sets or clears the reason why the webhooks cannot be called yet.
    pub(crate) fn set_webhooks_waiting(&self, why: Option<String>) {
        self.lock().webhooks = why;
    }

    /// Sets or clears why something cannot be watched, called or read.
    pub(crate) fn set_problem(&self, what: &'static str, why: Option<String>) {
        let mut state = self.lock();
        let before = match &why {
            Some(why) => state.problems.insert(what, why.clone()),
            None => state.problems.remove(what),
        };
        drop(state);
        if let Some(problem) = why.filter(|why| before.as_ref() != Some(why)) {
            tracing::error!(problem, "cluster.refused");
        }
    }

    /// The cluster answered.
    pub(crate) fn answered(&self) {
        if let Some(outage) = self.lock().outage.take() {
            tracing::info!(since = %outage.since, "cluster.back");
        }
    }

    /// The cluster did not answer.
    pub(crate) fn unreachable(&self, why: &str) {
        let why: String = why.chars().take(500).collect();
        let mut state = self.lock();
        if let Some(outage) = &mut state.outage {
            outage.why = why;
            return;
        }
        tracing::warn!(problem = why, "cluster.away");
        state.outage = Some(Outage {
            since: clock::now(),
            at: Instant::now(),
            why,
        });
    }

    /// The API server rejected a watch or a call.
    pub(super) fn set_problem_of(&self, what: &'static str, done: &str, status: &Status) {
        // 410 Gone: the watch starts again at once from a new list.
        if status.code == 410 {
            return;
        }
        let message: String = status.message.chars().take(300).collect();
        let hint = match status.code {
            404 if done == "watched" => {
                "; the custom resource definitions may be missing: `helm install merlon-crds`, or `merlon crds | kubectl apply --server-side -f -`"
            }
            403 => "; the control plane's role lacks a permission",
            _ => "",
        };
        let why = format!("{what} cannot be {done}: {}{hint}", message.trim());
        self.set_problem(what, Some(why));
    }

    fn expect_list(&self, what: &'static str) {
        self.lock().missing.insert(what);
    }

    /// Whether the kind was missing until now.
    fn mark_synced(&self, what: &'static str) -> bool {
        self.lock().missing.remove(what)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
