//! The share of each namespace: how many policies its users may add to the mesh, because every policy costs time and memory
//! of the control plane.

use std::collections::{BTreeMap, HashMap};

use merlon_config::resource::MeshConfigSpec;
use merlon_policy::text::policies_in;

use super::{
    acceptance::VersionsInForce,
    document::{Document, Key, Version},
};

/// Bytes of a resource that count as one policy, whatever they contain.
const BYTES: usize = 4 << 10;

/// What the namespaces use of their shares.
#[derive(Debug, Default)]
pub(super) struct Shares {
    /// The root namespace, which has no limit: its users configure the mesh.
    root: String,
    limit: usize,
    used: HashMap<String, usize>,
    documents: HashMap<Key, Counted>,
}

#[derive(Debug)]
struct Counted {
    uid: String,
    generation: i64,
    /// Of the present version.
    weight: usize,
    /// Of the version that keeps its place.
    used: usize,
}

impl Shares {
    /// Gives the shares to documents. Returns those that do not fit, each with the reason.
    ///
    /// What is in force keeps its place, and a version with fewer policies always fits. Otherwise the oldest document comes
    /// first.
    pub(super) fn give(
        root: &str,
        documents: &BTreeMap<Key, Document>,
        in_force: &VersionsInForce,
        before: &Self,
    ) -> (Self, BTreeMap<Key, String>) {
        let mut this = Self {
            root: root.to_owned(),
            limit: limit(root, documents),
            ..Self::default()
        };
        let mut growing = Vec::new();
        for (key, document) in documents {
            if !this.counts(key) {
                continue;
            }
            let weight = before
                .known(document)
                .unwrap_or_else(|| weight(&document.present));
            let used = match in_force.get(key) {
                Some(kept) if *kept == document.present => weight,
                Some(kept) => self::weight(kept).min(weight),
                // It was accepted before this replica started.
                None if document.accepted => weight,
                None => 0,
            };
            *this.used.entry(key.namespace.clone()).or_default() += used;
            if weight > used {
                growing.push(document);
            }
            let counted = Counted {
                uid: document.uid.clone(),
                generation: document.present.generation,
                weight,
                used,
            };
            this.documents.insert(key.clone(), counted);
        }
        growing.sort_by_key(|document| (document.created, &document.key));
        let mut beyond = BTreeMap::new();
        for document in growing {
            let key = &document.key;
            let (Some(counted), Some(used)) = (
                this.documents.get_mut(key),
                this.used.get_mut(&key.namespace),
            ) else {
                continue;
            };
            let others = *used - counted.used;
            if others + counted.weight <= this.limit {
                counted.used = counted.weight;
                *used = others + counted.weight;
            } else {
                beyond.insert(
                    key.clone(),
                    message(key, others, counted.weight, this.limit),
                );
            }
        }
        (this, beyond)
    }

    /// Whether a new document, or a new version of one, fits beside all others.
    ///
    /// # Errors
    /// The reason.
    pub(super) fn fits(&self, document: &Document) -> Result<(), String> {
        let key = &document.key;
        if !self.counts(key) {
            return Ok(());
        }
        let used = self.used.get(&key.namespace).copied().unwrap_or_default();
        let own = self.documents.get(key).map_or(0, |counted| counted.used);
        let (others, weight) = (used - own, weight(&document.present));
        if weight <= own || others + weight <= self.limit {
            return Ok(());
        }
        Err(message(key, others, weight, self.limit))
    }

    /// Whether a namespace uses more than a limit that a MeshConfig would set: the first one, with what it uses.
    pub(super) fn exceeded_by(&self, document: &Document) -> Option<String> {
        if document.key.kind != "MeshConfig" {
            return None;
        }
        let limit = stated(&document.present)?;
        let beyond = self.used.iter().filter(|(_, used)| **used > limit);
        let (namespace, used) = beyond.min()?;
        Some(format!(
            "spec.policiesPerNamespace: namespace `{namespace}` has {used} policies; it keeps them, and its users cannot add any"
        ))
    }

    fn known(&self, document: &Document) -> Option<usize> {
        let known = self.documents.get(&document.key)?;
        let same = known.uid == document.uid && known.generation == document.present.generation;
        same.then_some(known.weight)
    }

    fn counts(&self, key: &Key) -> bool {
        key.namespace != self.root && key.kind != "MeshConfig"
    }
}

/// The limit of the root namespace's MeshConfig, or the default.
fn limit(root: &str, documents: &BTreeMap<Key, Document>) -> usize {
    let mut documents = documents.iter();
    let mesh = documents.find(|(key, _)| key.kind == "MeshConfig" && key.namespace == root);
    let stated = mesh.and_then(|(_, document)| stated(&document.present));
    let default = usize::try_from(MeshConfigSpec::POLICIES_PER_NAMESPACE.get());
    stated.or(default.ok()).unwrap_or(usize::MAX)
}

fn stated(mesh: &Version) -> Option<usize> {
    let stated = mesh.spec.get("policiesPerNamespace")?.as_u64()?;
    usize::try_from(stated).ok()
}

/// The number of policies that a version counts as: those of its Cedar text, and at least one for each 4 KiB.
fn weight(version: &Version) -> usize {
    let text = version.spec.get("policies").and_then(|text| text.as_str());
    let policies = text.map_or(1, policies_in);
    policies.max(version.text.len().div_ceil(BYTES)).max(1)
}

fn message(key: &Key, others: usize, weight: usize, limit: usize) -> String {
    let namespace = &key.namespace;
    format!(
        "spec: this resource counts as {weight}, so namespace `{namespace}` would have {} policies; its share is {limit} (hint: delete policies that are not needed, or ask the platform team to raise `policiesPerNamespace` of the MeshConfig)",
        others.saturating_add(weight)
    )
}
