//! The share of each namespace: how many policies its users may add to the mesh, because every policy costs time and memory
//! of the control plane.

use std::collections::{BTreeMap, HashMap};

use merlon_config::resource::MeshConfigSpec;
use merlon_policy::text::policies_in;

use super::{
    acceptance::VersionsInForce,
    document::{Document, Key, Version},
};

/// The shares of all namespaces.
pub(super) struct Shares<'a> {
    /// The root namespace, which has no limit: its users configure the mesh.
    root: &'a str,
    limit: usize,
}

impl<'a> Shares<'a> {
    /// Those of the root namespace's MeshConfig, or the defaults.
    pub(super) fn of<'v>(
        root: &'a str,
        versions: impl Iterator<Item = (&'v Key, &'v Version)>,
    ) -> Self {
        let mut versions = versions;
        let mesh = versions.find(|(key, _)| key.kind == "MeshConfig" && key.namespace == root);
        let stated =
            mesh.and_then(|(_, version)| version.spec.get("policiesPerNamespace")?.as_u64());
        let stated = stated.and_then(|stated| usize::try_from(stated).ok());
        let default = usize::try_from(MeshConfigSpec::POLICIES_PER_NAMESPACE.get());
        Self {
            root,
            limit: stated.or(default.ok()).unwrap_or(usize::MAX),
        }
    }

    /// The documents that do not fit, each with the reason. What is in force keeps its place, and a version with fewer
    /// policies always fits. Otherwise the oldest document comes first.
    pub(super) fn beyond(
        &self,
        documents: &BTreeMap<Key, Document>,
        in_force: &VersionsInForce,
    ) -> BTreeMap<Key, String> {
        let mut used: HashMap<&str, usize> = HashMap::new();
        let mut growing = Vec::new();
        for (key, document) in documents.iter().filter(|(key, _)| self.counts(key)) {
            let kept = in_force.get(key);
            let before = kept.map_or(0, |kept| weight(key, kept));
            let after = match kept {
                Some(kept) if *kept == document.present => before,
                _ => weight(key, &document.present),
            };
            *used.entry(&key.namespace).or_default() += before.min(after);
            if after > before {
                growing.push((document, after - before, after));
            }
        }
        growing.sort_by_key(|(document, ..)| (document.created, &document.key));
        let mut beyond = BTreeMap::new();
        for (document, more, weight) in growing {
            let used = used.entry(&document.key.namespace).or_default();
            if *used + more <= self.limit {
                *used += more;
            } else {
                beyond.insert(
                    document.key.clone(),
                    self.message(&document.key, *used, weight),
                );
            }
        }
        beyond
    }

    /// Whether a document fits beside the versions in force.
    ///
    /// # Errors
    /// The reason.
    pub(super) fn fits(
        &self,
        document: &Document,
        in_force: &VersionsInForce,
    ) -> Result<(), String> {
        let key = &document.key;
        if !self.counts(key) {
            return Ok(());
        }
        let of_namespace = in_force
            .iter()
            .filter(|(other, _)| other.namespace == key.namespace);
        let others = of_namespace.filter(|(other, _)| *other != key);
        let others: usize = others.map(|(other, kept)| weight(other, kept)).sum();
        let before = in_force.get(key).map_or(0, |kept| weight(key, kept));
        let after = weight(key, &document.present);
        if after <= before || others + after <= self.limit {
            return Ok(());
        }
        Err(self.message(key, others, after))
    }

    fn counts(&self, key: &Key) -> bool {
        key.namespace != self.root && key.kind != "MeshConfig"
    }

    fn message(&self, key: &Key, used: usize, weight: usize) -> String {
        let (namespace, limit) = (&key.namespace, self.limit);
        let policies = if weight == 1 { "policy" } else { "policies" };
        format!(
            "spec: with the {weight} {policies} of this resource, namespace `{namespace}` would have {} policies; its share is {limit} (hint: delete policies that are not needed, or ask the platform team to raise `policiesPerNamespace` of the MeshConfig)",
            used.saturating_add(weight)
        )
    }
}

/// The number of policies in a version: those of its Cedar text, and one for any other resource.
fn weight(key: &Key, version: &Version) -> usize {
    match version.spec.get("policies").and_then(|text| text.as_str()) {
        Some(text) if key.kind == "AuthorizationPolicy" => policies_in(text).max(1),
        _ => 1,
    }
}
