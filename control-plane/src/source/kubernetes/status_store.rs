//! The results of the last evaluation, from which the status is written.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use merlon_compile::Mesh;
use tokio::sync::Notify;

use super::{
    acceptance::{Verdict, VersionsInForce},
    counts::{self, Counts},
    document::{Document, Key},
    gateway::GatewayStatus,
};
use crate::push::Enforcing;

/// Shared by the source, which evaluates resources, and the reporter, which writes their status.
#[derive(Debug, Clone, Default)]
pub(crate) struct StatusStore {
    inner: Arc<Mutex<Inner>>,
    changed: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Inner {
    documents: BTreeMap<Key, Document>,
    verdicts: BTreeMap<Key, Verdict>,
    /// The generation of each that is in force, and the snapshot since which it is.
    since: HashMap<Key, (i64, u64)>,
    mesh: Option<Arc<Mesh>>,
    left_out: BTreeMap<String, String>,
    /// The status of Gateway API's objects.
    gateways: Vec<GatewayStatus>,
    /// The deleted resources that stay in force, once they are known.
    retained: Option<VersionsInForce>,
}

impl StatusStore {
    pub(crate) fn set_verdicts(
        &self,
        documents: BTreeMap<Key, Document>,
        verdicts: BTreeMap<Key, Verdict>,
        left_out: BTreeMap<String, String>,
        mesh: Option<(Arc<Mesh>, u64)>,
    ) {
        let mut inner = self.lock();
        for (key, verdict) in &verdicts {
            let before = inner.verdicts.get(key);
            if before != Some(verdict) {
                log_verdict(key, verdict);
            }
            let in_force = verdict.in_force.as_ref();
            let generation = in_force.map_or(verdict.generation, |version| version.generation);
            let known = inner.since.get(key).map(|(generation, _)| *generation);
            if !verdict.enforced {
                inner.since.remove(key);
            } else if let Some((_, number)) = &mesh
                && (known != Some(generation) || before.map(|b| b.reason) != Some(verdict.reason))
            {
                inner.since.insert(key.clone(), (generation, *number));
            }
        }
        inner.since.retain(|key, _| verdicts.contains_key(key));
        inner.documents = documents;
        inner.verdicts = verdicts;
        inner.left_out = left_out;
        if let Some((mesh, _)) = mesh {
            inner.mesh = Some(mesh);
        }
        drop(inner);
        self.changed.notify_one();
    }

    pub(super) fn set_retained(&self, retained: Option<VersionsInForce>) {
        self.lock().retained = retained;
    }

    /// The deleted resources that stay in force. `None`: not known yet.
    pub(super) fn retained(&self) -> Option<VersionsInForce> {
        self.lock().retained.clone()
    }

    pub(crate) fn set_gateway_statuses(&self, gateways: Vec<GatewayStatus>) {
        let mut inner = self.lock();
        if inner.gateways != gateways {
            inner.gateways = gateways;
            drop(inner);
            self.changed.notify_one();
        }
    }

    /// The status of Gateway API's objects.
    pub(crate) fn gateway_statuses(&self) -> Vec<GatewayStatus> {
        self.lock().gateways.clone()
    }

    /// The cluster's objects that the last check left out, with the reason.
    pub(crate) fn left_out(&self) -> BTreeMap<String, String> {
        self.lock().left_out.clone()
    }

    /// Waits for results since the last call. For one waiter.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// The result for a resource.
    pub(crate) fn verdict(&self, key: &Key) -> Option<Verdict> {
        self.lock().verdicts.get(key).cloned()
    }

    /// Counts these proxies by resource.
    pub(crate) fn count(&self, proxies: &[Enforcing]) -> Counts {
        let inner = self.lock();
        let Some(mesh) = &inner.mesh else {
            return Counts::new();
        };
        counts::count(&inner.documents, &inner.since, mesh, proxies)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn log_verdict(key: &Key, verdict: &Verdict) {
    if verdict.accepted {
        tracing::info!(resource = %key, generation = verdict.generation, "resource.accepted");
        return;
    }
    let in_force = verdict.in_force.as_ref().filter(|_| verdict.enforced);
    tracing::warn!(
        resource = %key,
        generation = verdict.generation,
        reason = verdict.reason,
        problem = verdict.message,
        in_force = in_force.map(|version| version.generation),
        targets_denied = verdict.denied,
        "resource.refused"
    );
}
