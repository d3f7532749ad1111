//! What would become of a resource, asked before it is there.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use kube::api::DynamicObject;
use merlon_compile::{Compiler, Mesh};
use merlon_config::{crd::CLUSTER_KINDS, resource::Resource};
use serde_json::Value;

use super::{
    acceptance::{Good, elsewhere, prospect},
    document::Document,
};

/// Knows what is in force. Cheap to clone; all clones know the same.
#[derive(Clone)]
pub(crate) struct Judge {
    /// The control plane's own namespace.
    home: Arc<str>,
    known: Arc<Mutex<Known>>,
    /// Apart: a judging takes a while, and what is new must not wait for it.
    compiler: Arc<Mutex<Compiler>>,
}

#[derive(Clone, Default)]
struct Known {
    good: Arc<Good>,
    found: Arc<[Resource]>,
    running: Option<Arc<Mesh>>,
}

impl fmt::Debug for Judge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Judge").finish_non_exhaustive()
    }
}

impl Judge {
    pub(super) fn new(home: &str) -> Self {
        Self {
            home: home.into(),
            known: Arc::default(),
            compiler: Arc::default(),
        }
    }

    /// Takes over what is in force now.
    pub(super) fn learn(
        &self,
        good: Arc<Good>,
        found: Arc<[Resource]>,
        running: Option<&Arc<Mesh>>,
    ) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.good = good;
        known.found = found;
        if let Some(running) = running {
            known.running = Some(Arc::clone(running));
        }
    }

    /// What a person should know of a resource that would be accepted. It compiles the mesh, so it may take a while.
    ///
    /// # Errors
    /// Why it would not be, with field, line and column.
    pub(crate) fn would(&self, kind: &str, object: Value) -> Result<Vec<String>, String> {
        let Some(kind) = CLUSTER_KINDS.iter().find(|known| known.kind == kind) else {
            return Ok(Vec::new());
        };
        let object: DynamicObject = serde_json::from_value(object)
            .map_err(|error| format!("merlon: it cannot be read: {error}"))?;
        let document = Document::of(kind, &object)
            .ok_or_else(|| "merlon: it cannot be read: it lacks a namespace".to_owned())?;
        if let Some(why) = elsewhere(&document.key, &self.home) {
            return Err(why);
        }
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let Known {
            good,
            found,
            running,
        } = known.clone();
        drop(known);
        let mut compiler = self.compiler.lock().unwrap_or_else(PoisonError::into_inner);
        prospect(&mut compiler, &good, &found, running.as_deref(), &document)
    }
}
