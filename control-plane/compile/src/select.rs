//! Which workloads serve which service: by labels, within one namespace.

use std::collections::{BTreeMap, HashMap};

use merlon_config::{
    name::{Namespace, SpiffeId, TrustDomain, WorkloadId},
    resource::{Resource, ServiceSpec, Spec, WorkloadSpec},
};

/// A workload that Services can select.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Selectable<'a> {
    pub(crate) resource: &'a Resource,
    pub(crate) spec: &'a WorkloadSpec,
}

impl Selectable<'_> {
    pub(crate) fn workload_id(&self) -> WorkloadId {
        WorkloadId {
            namespace: self.resource.namespace.clone(),
            service_account: self.spec.service_account.clone(),
        }
    }

    pub(crate) fn identity(&self, trust_domain: &TrustDomain) -> SpiffeId {
        trust_domain.spiffe_id(&self.workload_id())
    }
}

/// Workloads, indexed by label, so a service is not compared with every workload.
#[derive(Debug)]
pub(crate) struct Workloads<'a> {
    pub(crate) all: Vec<Selectable<'a>>,
    by_label: HashMap<(&'a Namespace, &'a str, &'a str), Vec<usize>>,
}

impl<'a> Workloads<'a> {
    pub(crate) fn new(resources: &'a [Resource]) -> Self {
        let mut all: Vec<_> = resources
            .iter()
            .filter_map(|resource| match &resource.spec {
                Spec::Workload(spec) => Some(Selectable { resource, spec }),
                _ => None,
            })
            .collect();
        all.sort_by_key(|w| (w.resource.namespace.clone(), w.resource.name.clone()));
        let mut by_label: HashMap<_, Vec<usize>> = HashMap::new();
        for (index, workload) in all.iter().enumerate() {
            for (key, value) in &workload.resource.labels {
                let key = (&workload.resource.namespace, key.as_str(), value.as_str());
                by_label.entry(key).or_default().push(index);
            }
        }
        Self { all, by_label }
    }

    /// Indices into [`Workloads::all`], ascending. An empty selector selects nothing.
    pub(crate) fn selected(
        &self,
        namespace: &'a Namespace,
        service: &'a ServiceSpec,
    ) -> Vec<usize> {
        let Some((key, value)) = service.selector.iter().next() else {
            return Vec::new();
        };
        let candidates = self
            .by_label
            .get(&(namespace, key.as_str(), value.as_str()));
        candidates
            .into_iter()
            .flatten()
            .copied()
            .filter(|index| {
                let workload = self.all.get(*index);
                workload.is_some_and(|w| includes(&w.resource.labels, &service.selector))
            })
            .collect()
    }
}

fn includes(labels: &BTreeMap<String, String>, selector: &BTreeMap<String, String>) -> bool {
    selector
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}
