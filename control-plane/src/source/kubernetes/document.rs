//! A resource of the cluster, and its text for the loader.

use std::fmt;

use jiff::Timestamp;
use kube::{ResourceExt as _, api::DynamicObject};
use merlon_config::{crd, crd::Kind};
use serde_json::Value;

/// Kind, namespace and name of a resource.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) kind: &'static str,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.kind, self.namespace, self.name)
    }
}

/// One version of a resource.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Version {
    pub(crate) generation: i64,
    pub(crate) spec: Value,
    /// The document for the loader.
    pub(crate) text: String,
}

/// A resource of the cluster.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Document {
    pub(crate) key: Key,
    pub(crate) uid: String,
    pub(crate) created: Option<Timestamp>,
    pub(crate) present: Version,
    /// The version in force while the present one is not accepted, which another replica or this one before a restart wrote to
    /// the status.
    pub(crate) in_force: Option<Version>,
    /// Whether the status says that the present version is accepted.
    pub(crate) accepted: bool,
}

impl Document {
    pub(crate) fn of(kind: &Kind, object: &DynamicObject) -> Option<Self> {
        let key = Key {
            kind: kind.kind,
            namespace: object.namespace()?,
            name: object.name_any(),
        };
        let generation = object.metadata.generation.unwrap_or_default();
        let spec = object.data.get("spec").cloned().unwrap_or(Value::Null);
        let kept = object.data.pointer("/status/inForce");
        let in_force = kept.and_then(|kept| {
            let generation = kept.get("generation")?.as_i64()?;
            Version::of(&key, generation, kept.get("spec")?.clone())
        });
        let conditions = object.data.pointer("/status/conditions");
        let conditions = conditions.and_then(Value::as_array);
        let accepted = conditions.into_iter().flatten().any(|condition| {
            condition["type"] == "Accepted"
                && condition["status"] == "True"
                && condition["observedGeneration"] == generation
        });
        Some(Self {
            accepted,
            uid: object.uid().unwrap_or_default(),
            created: object.creation_timestamp().map(|time| time.0),
            present: Version::of(&key, generation, spec)?,
            in_force,
            key,
        })
    }

    /// The present version as an entry of a set.
    pub(super) fn change(&self) -> (Key, Version) {
        (self.key.clone(), self.present.clone())
    }
}

impl Version {
    pub(super) fn of(key: &Key, generation: i64, spec: Value) -> Option<Self> {
        let text = crd::document(key.kind, (&key.namespace, &key.name), &spec).ok()?;
        Some(Self {
            generation,
            spec,
            text,
        })
    }
}
