//! Writes results to the cluster: each replica its counts, the leader the status of resources.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, DynamicObject, Patch, PatchParams},
    runtime::reflector::ObjectRef,
};
use merlon_config::{clock, crd::Kind};
use serde_json::{Value, json};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    counts::{self, Counts},
    document::Key,
    gateway::{self, GatewayDetails},
    retained,
    status::{ExtraCondition, status},
    status_store::StatusStore,
};
use crate::{
    cluster::{
        gateway_api, names,
        watch::{Cluster, Gateways, resource_of},
    },
    config::KubernetesConfig,
    issuance::authority::Authority,
    limits::StatusLimits,
    push::Registry,
    secrets::Deliveries,
};

pub(crate) struct Reporter {
    client: Client,
    replica: String,
    namespace: String,
    cluster: Cluster,
    statuses: StatusStore,
    registry: Registry,
    authority: Authority,
    deliveries: Deliveries,
    leads: watch::Receiver<bool>,
    limits: StatusLimits,
    published: Option<(Counts, Instant)>,
}

impl Reporter {
    pub(crate) fn new(
        client: Client,
        config: &KubernetesConfig,
        cluster: Cluster,
        statuses: StatusStore,
        registry: Registry,
        (authority, deliveries): (Authority, Deliveries),
        (leads, limits): (watch::Receiver<bool>, StatusLimits),
    ) -> Self {
        Self {
            client,
            replica: format!("merlon-replica-{}", config.replica),
            namespace: config.namespace.clone(),
            cluster,
            statuses,
            registry,
            authority,
            deliveries,
            leads,
            limits,
            published: None,
        }
    }

    /// Runs until `shutdown`, and then deletes its counts.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let mut changes = self.cluster.changes();
        let mut leads = self.leads.clone();
        let mut deliveries = self.deliveries.changes();
        loop {
            tokio::select! {
                // The watches end with the process.
                changed = changes.changed() => if changed.is_err() { break },
                () = self.registry.changed() => {}
                () = self.statuses.changed() => {}
                Ok(()) = leads.changed() => {}
                Ok(()) = deliveries.changed() => {}
                () = tokio::time::sleep(self.limits.counts_renewal) => {}
                () = shutdown.cancelled() => break,
            }
            tokio::time::sleep(self.limits.gather).await;
            changes.mark_unchanged();
            self.report().await;
        }
        self.delete(&self.replica).await;
    }

    async fn report(&mut self) {
        let own = self.statuses.count(&self.registry.enforcing());
        if self.cluster.contact.outage().is_some() {
            // Published again once the cluster is available: its watches report a change.
            self.published = None;
            return;
        }
        let published = self.published.as_ref();
        if published
            .is_none_or(|(counts, at)| *counts != own || at.elapsed() >= self.limits.counts_renewal)
        {
            let now = clock::now();
            let map = counts::config_map(&self.replica, &own, now);
            let timeout = self.limits.timeout;
            if apply(&self.config_maps(), &self.replica, &map, timeout).await {
                self.published = Some((own.clone(), Instant::now()));
            }
        }
        if *self.leads.borrow() {
            self.keep_retained().await;
            self.write_statuses(&own).await;
        }
    }

    /// Keeps the deleted resources that stay in force, each in a ConfigMap.
    async fn keep_retained(&self) {
        let Some(wanted) = self.statuses.retained() else {
            return;
        };
        let api = self.config_maps();
        let mut present: HashMap<String, Arc<ConfigMap>> = HashMap::new();
        for map in self.cluster.retained.state() {
            present.insert(map.name_any(), map);
        }
        for (key, version) in wanted {
            let name = retained::name(&key);
            let kept = present.remove(&name);
            let kept = kept.and_then(|map| retained::resource(&map));
            if kept.is_none_or(|(_, kept)| kept != version) {
                let map = retained::config_map(&key, &version);
                apply(&api, &name, &map, self.limits.timeout).await;
            }
        }
        for name in present.keys() {
            self.delete(name).await;
        }
    }

    async fn delete(&self, config_map: &str) {
        let (api, parameters) = (self.config_maps(), DeleteParams::default());
        let deleted = api.delete(config_map, &parameters);
        let _ = tokio::time::timeout(self.limits.timeout, deleted).await;
    }

    async fn write_statuses(&self, own: &Counts) {
        let now = clock::now();
        let reported = self.cluster.counts.state();
        let sum = counts::sum(
            &self.replica,
            own,
            &reported,
            now,
            self.limits.counts_max_age,
        );
        let due = self.cluster.kinds.iter().flat_map(|(kind, store)| {
            let objects = store.state();
            let due = objects.into_iter().filter_map(|object| {
                let status = self.due(kind, &object, &sum, now)?;
                Some((kind, object, status))
            });
            due.collect::<Vec<_>>()
        });
        let due: Vec<_> = due.collect();
        stream::iter(due)
            .for_each_concurrent(
                self.limits.calls.max(1),
                |(kind, object, status)| async move {
                    self.write(kind, &object, status).await;
                },
            )
            .await;
        if let Some(stores) = &self.cluster.gateways {
            stream::iter(self.statuses.gateway_statuses())
                .for_each_concurrent(self.limits.calls.max(1), |report| {
                    let count = sum.get(&counts::gateway_key(&report.namespace, &report.name));
                    let enforcing = count.map_or(0, |count| count.enforcing);
                    self.write_gateway_status(stores, report, enforcing, now)
                })
                .await;
        }
        self.remove_stale_counts(&reported, now).await;
    }

    /// The status of an object, if it has to be written.
    fn due(
        &self,
        kind: &Kind,
        object: &DynamicObject,
        sum: &Counts,
        now: Timestamp,
    ) -> Option<Value> {
        let key = Key {
            kind: kind.kind,
            namespace: object.namespace()?,
            name: object.name_any(),
        };
        let verdict = self.statuses.verdict(&key)?;
        // A newer generation is checked soon.
        if object.metadata.generation != Some(verdict.generation)
            || object.uid() != Some(verdict.uid.clone())
        {
            return None;
        }
        let before = object.data.get("status");
        let extra = match kind.kind {
            "MeshConfig" => self.issuer(),
            "SecretGrant" => self.delivery(&key),
            _ => None,
        };
        let status = status(&verdict, sum.get(&key), extra, before, now);
        (before != Some(&status)).then_some(status)
    }

    /// Writes the status of an object of Gateway API if it changed. Other controllers write it, too, so the patch
    /// requires the known resource version.
    async fn write_gateway_status(
        &self,
        stores: &Gateways,
        report: gateway::GatewayStatus,
        enforcing: u64,
        now: Timestamp,
    ) {
        let (store, kind) = match report.details {
            GatewayDetails::Class => (&stores.classes, gateway_api::KINDS[0]),
            GatewayDetails::Gateway { .. } => (&stores.gateways, gateway_api::KINDS[1]),
            GatewayDetails::Route(_) => (&stores.routes, gateway_api::KINDS[2]),
        };
        let resource = gateway_api::resource_of(kind);
        let mut found = ObjectRef::new_with(&report.name, resource.clone());
        found.namespace = (!report.namespace.is_empty()).then(|| report.namespace.clone());
        let Some(object) = store.get(&found) else {
            return;
        };
        if object.uid().as_deref() != Some(&*report.uid)
            || object.metadata.generation.unwrap_or_default() != report.generation
        {
            return;
        }
        let before = object.data.get("status");
        let status = report.status(before, enforcing, now);
        let mut parts = status.as_object().into_iter().flatten();
        if parts.all(|(name, part)| before.and_then(|before| before.get(name)) == Some(part)) {
            return;
        }
        let api: Api<DynamicObject> = match &found.namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        };
        let patch = json!({
            "metadata": { "resourceVersion": object.resource_version() },
            "status": status,
        });
        let parameters = PatchParams {
            field_manager: Some(names::FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let patch = Patch::Merge(&patch);
        let written = api.patch_status(&report.name, &parameters, &patch);
        match tokio::time::timeout(self.limits.timeout, written).await {
            Ok(Ok(_)) => {}
            // The object was deleted or changed. A change triggers another report.
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => {}
            Ok(Err(error)) => {
                tracing::warn!(object = report.origin(), error = %error, "status.failed");
            }
            Err(_) => {
                tracing::warn!(
                    object = report.origin(),
                    error = "no answer in time",
                    "status.failed"
                );
            }
        }
    }

    /// Whether the certificate issuer works, once it was used.
    fn issuer(&self) -> Option<ExtraCondition> {
        let kind = "CertificatesIssued";
        if let Some(problem) = self.authority.problem() {
            return Some((kind, (false, "IssuerFailed", problem)));
        }
        let certified = self.authority.certified();
        certified.map(|_| {
            (
                kind,
                (true, "Issued", "the issuer signs certificates".to_owned()),
            )
        })
    }

    /// Whether the secret could be read from Vault.
    fn delivery(&self, key: &Key) -> Option<ExtraCondition> {
        let name = format!("{}/{}", key.namespace, key.name).parse().ok()?;
        let state = match self.deliveries.of(&name)? {
            Ok(version) => (true, "Read", format!("version {version} of the secret")),
            Err(problem) => (false, "ReadFailed", problem),
        };
        Some(("SecretRead", state))
    }

    async fn write(&self, kind: &Kind, object: &DynamicObject, status: Value) {
        let namespace = object.namespace().unwrap_or_default();
        let resource = resource_of(kind);
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), &namespace, &resource);
        // The uid prevents a write to a new object of the same name.
        let patch = json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": { "name": object.name_any(), "uid": object.uid() },
            "status": status,
        });
        let parameters = PatchParams::apply(names::FIELD_MANAGER).force();
        let (name, patch) = (object.name_any(), Patch::Apply(&patch));
        let written = api.patch_status(&name, &parameters, &patch);
        match tokio::time::timeout(self.limits.timeout, written).await {
            Ok(Ok(_)) => {}
            // The object was deleted.
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => {}
            Ok(Err(error)) => {
                tracing::warn!(kind = kind.kind, namespace, name, error = %error, "status.failed");
            }
            Err(_) => tracing::warn!(
                kind = kind.kind,
                namespace,
                name,
                error = "no answer in time",
                "status.failed"
            ),
        }
    }

    /// Deletes counts of replicas that ended without deleting them.
    async fn remove_stale_counts(&self, reported: &[Arc<ConfigMap>], now: Timestamp) {
        for map in reported {
            let name = map.name_any();
            if name != self.replica && !counts::is_fresh(map, now, self.limits.counts_max_age) {
                self.delete(&name).await;
            }
        }
    }

    fn config_maps(&self) -> Api<ConfigMap> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }
}

/// Server-side apply; whether it succeeded.
pub(crate) async fn apply(
    api: &Api<ConfigMap>,
    name: &str,
    map: &Value,
    timeout: Duration,
) -> bool {
    let parameters = PatchParams::apply(names::FIELD_MANAGER).force();
    let patch = Patch::Apply(map);
    match tokio::time::timeout(timeout, api.patch(name, &parameters, &patch)).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => {
            tracing::warn!(config_map = name, error = %error, "config_map.failed");
            false
        }
        Err(_) => {
            tracing::warn!(
                config_map = name,
                error = "no answer in time",
                "config_map.failed"
            );
            false
        }
    }
}
