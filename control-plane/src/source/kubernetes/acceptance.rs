//! Selects the versions of the resources that are in force together.
//!
//! In a cluster, resources belong to different users, so they are not accepted or rejected as a whole. An invalid
//! resource keeps its last valid version, and all others are updated. The versions in force always compiled as one set.

mod problems;
mod stand_in;
mod trial;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use merlon_compile::{Compiler, Mesh};
use merlon_config::{
    Resources,
    report::{Problem, Report},
    resource::{Resource, Spec, TargetKind},
};

use self::{
    problems::{MAX_PROBLEMS, describe, find, problems_of},
    trial::{Compiled, Denied, Rejections, Selection, Trial},
};
use super::{
    document::{Document, Key, Version},
    share::Shares,
};

pub(super) use self::trial::dry_run;

/// The result for a resource.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Verdict {
    pub(crate) uid: String,
    /// The generation that was checked.
    pub(crate) generation: i64,
    pub(crate) accepted: bool,
    /// The condition's reason.
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    /// The version in force, if the resource is not accepted. It may be the checked one.
    pub(crate) in_force: Option<Version>,
    /// Whether any version is in force.
    pub(crate) enforced: bool,
    /// Whether requests to its targets are denied, because it was in force and cannot be.
    pub(crate) denied: bool,
}

/// Decides which versions are in force, and keeps the valid ones.
#[derive(Debug)]
pub(crate) struct Acceptance {
    /// The control plane's own namespace. The `MeshConfig` must be there.
    home: String,
    compiler: Compiler,
    /// Whether a mesh was compiled. Until then, what was in force before the start is found in the statuses.
    started: bool,
    /// Shared with the dry run of the validation webhook.
    in_force: Arc<InForce>,
    /// Shared with it, too.
    shares: Arc<Shares>,
}

/// Versions by resource.
pub(super) type VersionsInForce = BTreeMap<Key, Version>;

/// What is in force.
#[derive(Debug, Clone, Default)]
pub(super) struct InForce {
    versions: VersionsInForce,
    /// Those of the versions that cannot be in force now.
    denied: BTreeMap<Key, Denied>,
    /// Those of deleted resources, which others need.
    retained: BTreeSet<Key>,
}

impl InForce {
    /// The versions that compiled together.
    fn applied(&self) -> VersionsInForce {
        let mut applied = self.versions.clone();
        for (key, denied) in &self.denied {
            trial::replace(&mut applied, key, denied.stand_in.as_ref());
        }
        applied
    }
}

/// The result of one compilation.
#[derive(Debug)]
pub(crate) struct Evaluation {
    /// `None`: the last mesh stays in force.
    pub(crate) mesh: Option<Arc<Mesh>>,
    pub(crate) verdicts: BTreeMap<Key, Verdict>,
    /// Problems that no single resource causes.
    pub(crate) problems: Report,
    /// Objects of the cluster that cannot be used, with their problem.
    pub(crate) left_out: BTreeMap<String, String>,
    /// The resources that were in force and cannot be, so that their targets are denied, with the problem.
    pub(crate) denied: BTreeMap<Key, String>,
    /// How often the mesh was compiled.
    pub(crate) compilations: u32,
}

/// Why a document is ignored regardless of its content. Another namespace's `MeshConfig` belongs to users of that
/// namespace and could otherwise conflict with the mesh's own or replace it.
pub(super) fn outside_root_namespace(key: &Key, home: &str) -> Option<String> {
    let outside = key.kind == "MeshConfig" && key.namespace != home;
    outside.then(|| {
        format!(
            "metadata.namespace: the mesh is configured in `{home}`, where its control plane runs; a MeshConfig in `{}` is ignored (hint: delete it)",
            key.namespace
        )
    })
}

impl Acceptance {
    pub(crate) fn new(home: &str) -> Self {
        Self {
            home: home.to_owned(),
            compiler: Compiler::default(),
            started: false,
            in_force: Arc::default(),
            shares: Arc::default(),
        }
    }

    /// Checks `documents` together with the resources derived from the cluster's objects.
    pub(crate) fn evaluate(
        &mut self,
        documents: &BTreeMap<Key, Document>,
        found: &[Resource],
        running: Option<&Mesh>,
    ) -> Evaluation {
        let misplaced = documents.iter().filter_map(|(key, document)| {
            let why = outside_root_namespace(key, &self.home)?;
            Some((key.clone(), refused(document, None, "Invalid", why)))
        });
        let mut misplaced: BTreeMap<Key, Verdict> = misplaced.collect();
        if misplaced.is_empty() {
            return self.evaluate_own(documents, found, running);
        }
        let mut own = documents.clone();
        own.retain(|key, _| !misplaced.contains_key(key));
        let mut evaluation = self.evaluate_own(&own, found, running);
        evaluation.verdicts.append(&mut misplaced);
        evaluation
    }

    fn evaluate_own(
        &mut self,
        documents: &BTreeMap<Key, Document>,
        found: &[Resource],
        running: Option<&Mesh>,
    ) -> Evaluation {
        self.add_from_statuses(documents);
        let before = Arc::clone(&self.in_force);
        let (shares, beyond) = Shares::give(&self.home, documents, &before.versions, &self.shares);
        self.shares = Arc::new(shares);
        let too_many = beyond.into_iter().map(|(key, why)| (key, ("TooMany", why)));
        let too_many: Rejections = too_many.collect();
        let mut trial = Trial::new(&mut self.compiler, (&self.home, running), found);
        let mut rejected = too_many.clone();
        let mut first = Rejections::new();
        let selected = trial.all_changes(documents, &before, &mut rejected);
        let selected = selected.or_else(|_| {
            first = std::mem::replace(&mut rejected, too_many);
            trial.by_precedence(documents, &before, &mut rejected)
        });
        let left_out = std::mem::take(&mut trial.left_out);
        let compilations = trial.compilations;
        let selection = match selected {
            Ok(selection) => selection,
            Err(report) => {
                let verdicts = documents.values().map(|document| {
                    let kept = before.versions.get(&document.key);
                    let (reason, message) = first.remove(&document.key).unwrap_or_else(|| {
                        let own = problems_of(&document.key, &report, None);
                        let waits = "no change is applied until the other resources are valid";
                        ("Conflicted", own.unwrap_or_else(|| waits.to_owned()))
                    });
                    let verdict = refused(document, kept, reason, message);
                    (document.key.clone(), verdict)
                });
                return Evaluation {
                    mesh: None,
                    verdicts: verdicts.collect(),
                    problems: report,
                    left_out,
                    denied: BTreeMap::new(),
                    compilations,
                };
            }
        };
        let Selection {
            set,
            compiled,
            denied,
        } = selection;
        self.started = true;
        self.in_force = Arc::new(in_force(
            &before,
            set,
            denied,
            documents,
            &compiled.resources,
        ));
        let InForce {
            versions, denied, ..
        } = &*self.in_force;
        let verdicts = documents.values().map(|document| {
            let key = &document.key;
            let denied = denied.get(key);
            let reason = denied.map(|denied| (denied.reason, denied.message.clone()));
            let verdict = match rejected.remove(key).or(reason) {
                Some((reason, message)) => {
                    let verdict = refused(document, versions.get(key), reason, message);
                    match denied {
                        Some(denied) => Verdict {
                            enforced: false,
                            denied: denied.stand_in.is_some(),
                            ..verdict
                        },
                        None => verdict,
                    }
                }
                None => accepted(document, &compiled),
            };
            (key.clone(), verdict)
        });
        let verdicts = verdicts.collect();
        let denied = denied.iter();
        Evaluation {
            verdicts,
            mesh: Some(compiled.mesh),
            problems: Report::new(),
            left_out,
            denied: denied
                .map(|(key, denied)| (key.clone(), denied.message.clone()))
                .collect(),
            compilations,
        }
    }

    /// Adds the versions that were in force before this process started. Later, only those that another replica put in force.
    fn add_from_statuses(&mut self, documents: &BTreeMap<Key, Document>) {
        if !self.started {
            let InForce {
                versions, retained, ..
            } = Arc::make_mut(&mut self.in_force);
            versions.retain(|key, _| retained.contains(key));
        }
        for (key, document) in documents {
            let version = match &document.in_force {
                None if document.accepted && !self.started => Some(&document.present),
                kept => kept.as_ref(),
            };
            if let Some(version) = version
                && !self.in_force.versions.contains_key(key)
            {
                let in_force = Arc::make_mut(&mut self.in_force);
                in_force.versions.insert(key.clone(), version.clone());
            }
        }
    }
}

impl Acceptance {
    /// Sets the deleted resources that were in force before this process started, because others needed them. After the first
    /// mesh, it changes nothing.
    pub(crate) fn set_retained(&mut self, retained: VersionsInForce) {
        if !self.started {
            let keys = retained.keys();
            self.in_force = Arc::new(InForce {
                retained: keys.cloned().collect(),
                versions: retained,
                denied: BTreeMap::new(),
            });
        }
    }

    /// The deleted resources that stay in force. `None`: not known yet.
    pub(crate) fn retained(&self) -> Option<VersionsInForce> {
        let InForce {
            versions, retained, ..
        } = &*self.in_force;
        let kept = versions.iter().filter(|(key, _)| retained.contains(key));
        self.started.then(|| {
            kept.map(|(key, version)| (key.clone(), version.clone()))
                .collect()
        })
    }

    /// What is in force.
    pub(super) fn in_force(&self) -> Arc<InForce> {
        Arc::clone(&self.in_force)
    }

    /// What the namespaces use of their shares.
    pub(super) fn shares(&self) -> Arc<Shares> {
        Arc::clone(&self.shares)
    }
}

/// What is in force after a selection.
///
/// It contains only versions that were really checked. A policy without targets is not compiled. If it counted as valid and its
/// target were created later, it would deny the target, although it never was in force.
fn in_force(
    before: &InForce,
    set: VersionsInForce,
    denied: BTreeMap<Key, Denied>,
    documents: &BTreeMap<Key, Document>,
    resources: &Resources,
) -> InForce {
    let checked = set.into_iter().filter_map(|(key, version)| {
        if !has_no_target(&key, resources) {
            return Some((key, version));
        }
        let before = before.versions.get(&key)?.clone();
        Some((key, before))
    });
    let mut versions: VersionsInForce = checked.collect();
    // The set has the policies in their place, or nothing.
    for (key, denied) in &denied {
        versions.insert(key.clone(), denied.version.clone());
    }
    let retained = versions.keys().filter(|key| !documents.contains_key(key));
    InForce {
        retained: retained.cloned().collect(),
        versions,
        denied,
    }
}

fn refused(
    document: &Document,
    kept: Option<&Version>,
    reason: &'static str,
    message: String,
) -> Verdict {
    Verdict {
        uid: document.uid.clone(),
        generation: document.present.generation,
        accepted: false,
        reason,
        message,
        in_force: kept.cloned(),
        enforced: kept.is_some(),
        denied: false,
    }
}

fn accepted(document: &Document, compiled: &Compiled) -> Verdict {
    let key = &document.key;
    let file = key.to_string();
    let warnings = compiled.resources.warnings.problems().iter();
    let warnings: Vec<&Problem> = warnings.filter(|problem| problem.file == file).collect();
    let lines: Vec<String> = warnings
        .iter()
        .take(MAX_PROBLEMS)
        .map(|p| describe(p, None))
        .collect();
    let missing = missing_target(key, &compiled.resources);
    let (accepted, reason) = match (missing, warnings.is_empty()) {
        (true, _) => (false, "TargetNotFound"),
        (false, false) => (true, "AcceptedWithWarnings"),
        (false, true) => (true, "Accepted"),
    };
    Verdict {
        uid: document.uid.clone(),
        generation: document.present.generation,
        accepted,
        reason,
        message: if lines.is_empty() {
            "valid and in force".to_owned()
        } else {
            lines.join("\n")
        },
        in_force: None,
        enforced: true,
        denied: false,
    }
}

/// Whether none of a policy's targets exists.
fn has_no_target(key: &Key, resources: &Resources) -> bool {
    let Some(resource) = find(key, resources) else {
        return false;
    };
    let Some(targets) = resource.spec.target_refs() else {
        return false;
    };
    let mut there = resources
        .list
        .iter()
        .filter(|other| matches!(other.spec, Spec::Service(_) | Spec::Gateway(_)));
    let own_namespace = |other: &&Resource| other.namespace == resource.namespace;
    if targets.is_empty() {
        return !there.any(|other| own_namespace(&other));
    }
    let is_target = |other: &Resource| {
        targets.iter().any(|target| match target.kind {
            TargetKind::Mesh => true,
            TargetKind::Namespace => own_namespace(&other),
            TargetKind::Service | TargetKind::Gateway => {
                own_namespace(&other) && target.name.as_ref() == Some(&other.name)
            }
        })
    };
    !there.any(is_target)
}

/// Whether one of its targets does not exist. It takes effect once the target is created.
fn missing_target(key: &Key, resources: &Resources) -> bool {
    let Some(resource) = find(key, resources) else {
        return false;
    };
    let targets = resource.spec.target_refs().unwrap_or_default();
    targets.iter().any(|target| {
        let kind = match target.kind {
            TargetKind::Service => "Service",
            TargetKind::Gateway => "Gateway",
            TargetKind::Namespace | TargetKind::Mesh => return false,
        };
        let name = target.name.as_ref();
        name.is_some_and(|name| resources.find(kind, &resource.namespace, name).is_none())
    })
}

#[cfg(test)]
mod tests;
