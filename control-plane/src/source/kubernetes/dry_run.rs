//! Checks a resource before it is created or changed.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use kube::api::DynamicObject;
use merlon_compile::{Compiler, Mesh};
use merlon_config::{crd::CLUSTER_KINDS, resource::Resource};
use serde_json::Value;

use super::{
    acceptance::{VersionsInForce, dry_run, outside_root_namespace},
    document::Document,
};

/// Checks resources against the versions in force. Clones share them and are cheap.
#[derive(Clone)]
pub(crate) struct DryRun {
    /// The control plane's own namespace.
    home: Arc<str>,
    known: Arc<Mutex<InForce>>,
    /// A separate lock: a check takes time and must not delay updates of `known`.
    compiler: Arc<Mutex<Compiler>>,
}

#[derive(Clone, Default)]
struct InForce {
    in_force: Arc<VersionsInForce>,
    found: Arc<[Resource]>,
    running: Option<Arc<Mesh>>,
}

impl fmt::Debug for DryRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DryRun").finish_non_exhaustive()
    }
}

impl DryRun {
    pub(super) fn new(home: &str) -> Self {
        Self {
            home: home.into(),
            known: Arc::default(),
            compiler: Arc::default(),
        }
    }

    /// Replaces the versions in force.
    pub(super) fn update(
        &self,
        in_force: Arc<VersionsInForce>,
        found: Arc<[Resource]>,
        running: Option<&Arc<Mesh>>,
    ) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.in_force = in_force;
        known.found = found;
        if let Some(running) = running {
            known.running = Some(Arc::clone(running));
        }
    }

    /// Warnings about a resource that would be accepted. It compiles the mesh, so it may take some time.
    ///
    /// # Errors
    /// Why it would be refused, with field, line and column.
    pub(crate) fn check(&self, kind: &str, object: Value) -> Result<Vec<String>, String> {
        let Some(kind) = CLUSTER_KINDS.iter().find(|known| known.kind == kind) else {
            return Ok(Vec::new());
        };
        let object: DynamicObject = serde_json::from_value(object)
            .map_err(|error| format!("merlon: the resource cannot be parsed: {error}"))?;
        let document = Document::of(kind, &object)
            .ok_or_else(|| "merlon: the resource has no namespace".to_owned())?;
        if let Some(why) = outside_root_namespace(&document.key, &self.home) {
            return Err(why);
        }
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let InForce {
            in_force,
            found,
            running,
        } = known.clone();
        drop(known);
        let mut compiler = self.compiler.lock().unwrap_or_else(PoisonError::into_inner);
        dry_run(
            &mut compiler,
            &in_force,
            &found,
            running.as_deref(),
            &document,
        )
    }
}
