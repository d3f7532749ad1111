//! How many proxies enforce each resource. Every replica counts its own and publishes the counts in a ConfigMap for the
//! leader.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt as _;
use merlon_compile::{Mesh, Proxy};
use merlon_config::{name::ServiceName, resource::TargetKind};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::document::{Document, Key};
use crate::{cluster::names, push::Enforcing};

/// The counts of one resource.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Count {
    /// The resource's generation.
    pub(crate) generation: i64,
    /// How many proxies enforce it.
    pub(crate) enforcing: u64,
    /// The number of affected proxies.
    pub(crate) of: u64,
    /// Why one of them does not enforce it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) refusal: Option<String>,
}

pub(crate) type Counts = BTreeMap<Key, Count>;

/// Counts one replica's proxies. `since` has the generation of each resource in force and the snapshot since which it
/// is in force.
pub(crate) fn count(
    documents: &BTreeMap<Key, Document>,
    since: &HashMap<Key, (i64, u64)>,
    mesh: &Mesh,
    proxies: &[Enforcing],
) -> Counts {
    let known: HashMap<&ServiceName, &Arc<Proxy>> =
        mesh.proxies().map(|proxy| (proxy.name(), proxy)).collect();
    let root = mesh.config().root_namespace.as_str();
    let counted = documents.values().filter_map(|document| {
        let (generation, snapshot) = *since.get(&document.key)?;
        let affected = affected(document, root);
        let mut count = Count {
            generation,
            ..Count::default()
        };
        for proxy in proxies {
            if !known.get(&proxy.name).is_some_and(|known| affected(known)) {
                continue;
            }
            count.of += 1;
            if proxy.snapshot >= snapshot {
                count.enforcing += 1;
            } else if let Some(refusal) = &proxy.refusal {
                let refusal: String = refusal.chars().take(300).collect();
                count.refusal = Some(format!("{} rejects it: {refusal}", proxy.name));
            }
        }
        Some((document.key.clone(), count))
    });
    let mut counted: Counts = counted.collect();
    counted.extend(gateways(mesh, proxies));
    counted
}

/// The key under which the proxies of a Gateway are counted.
pub(crate) fn gateway_key(namespace: &str, name: &str) -> Key {
    Key {
        kind: "Gateway",
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    }
}

/// The proxies of each Gateway. A proxy that rejects nothing enforces it.
fn gateways(mesh: &Mesh, proxies: &[Enforcing]) -> Counts {
    let all = mesh.proxies().filter(|proxy| proxy.is_gateway());
    let counted = all.map(|gateway| {
        let name = gateway.name();
        let own: Vec<_> = proxies.iter().filter(|proxy| proxy.name == *name).collect();
        let enforcing = own.iter().filter(|proxy| proxy.refusal.is_none());
        let count = Count {
            generation: 0,
            enforcing: enforcing.count() as u64,
            of: own.len() as u64,
            refusal: own.iter().find_map(|proxy| proxy.refusal.clone()),
        };
        (
            gateway_key(name.namespace.as_str(), name.name.as_str()),
            count,
        )
    });
    counted.collect()
}

/// Whether a resource affects a proxy.
fn affected(document: &Document, root: &str) -> impl Fn(&Proxy) -> bool {
    let namespace = document.key.namespace.clone();
    let whole = document.key.kind == "MeshConfig";
    let refs = document.present.spec.get("targetRefs");
    let refs: Vec<merlon_config::resource::TargetRef> = refs
        .and_then(|refs| serde_json::from_value(refs.clone()).ok())
        .unwrap_or_default();
    let for_mesh = namespace == root && refs.iter().any(|to| to.kind == TargetKind::Mesh);
    let for_namespace = refs.is_empty() || refs.iter().any(|to| to.kind == TargetKind::Namespace);
    // A grant affects the workloads of one service account.
    let account = document.present.spec.get("serviceAccount");
    let account = (document.key.kind == "SecretGrant")
        .then(|| account.and_then(|name| name.as_str()).map(str::to_owned))
        .flatten();
    move |proxy| {
        if let Some(account) = &account {
            let own = proxy.identity().workload();
            return own.namespace.as_str() == namespace && own.service_account.as_str() == account;
        }
        let hit = |service: &ServiceName| {
            service.namespace.as_str() == namespace
                && (for_namespace
                    || refs
                        .iter()
                        .any(|to| to.name.as_ref() == Some(&service.name)))
        };
        whole
            || for_mesh
            || (proxy.is_gateway() && hit(proxy.name()))
            || proxy.services().iter().any(hit)
    }
}

/// The ConfigMap of a replica, for server-side apply.
pub(crate) fn config_map(name: &str, counts: &Counts, now: Timestamp) -> serde_json::Value {
    let counts: BTreeMap<String, &Count> = counts
        .iter()
        .map(|(key, count)| (key.to_string(), count))
        .collect();
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": name,
            "labels": {
                names::REPLICA_LABEL: "true",
                "app.kubernetes.io/part-of": "merlon",
            },
        },
        "data": {
            "at": now.to_string(),
            "counts": serde_json::to_string(&counts).unwrap_or_default(),
        },
    })
}

/// The sum of all replicas' counts. Only counts of the generation that the leader has in force are added.
pub(crate) fn sum(
    own_name: &str,
    own: &Counts,
    reported: &[Arc<ConfigMap>],
    now: Timestamp,
    max_age: Duration,
) -> Counts {
    let mut sum = own.clone();
    for other in reported {
        if other.name_any() == own_name || !is_fresh(other, now, max_age) {
            continue;
        }
        let counts = other.data.as_ref().and_then(|data| data.get("counts"));
        let counts: BTreeMap<String, Count> = counts
            .and_then(|text| serde_json::from_str(text).ok())
            .unwrap_or_default();
        for (key, total) in &mut sum {
            let Some(count) = counts.get(&key.to_string()) else {
                continue;
            };
            total.of += count.of;
            if count.generation == total.generation {
                total.enforcing += count.enforcing;
                total.refusal = total.refusal.take().or_else(|| count.refusal.clone());
            }
        }
    }
    sum
}

/// Whether the replica still renews its counts.
pub(crate) fn is_fresh(reported: &ConfigMap, now: Timestamp, max_age: Duration) -> bool {
    let at = reported.data.as_ref().and_then(|data| data.get("at"));
    let at = at.and_then(|at| at.parse::<Timestamp>().ok());
    // A replica whose clock is ahead is fresh.
    at.is_some_and(|at| Duration::try_from(now.duration_since(at)).unwrap_or_default() < max_age)
}
