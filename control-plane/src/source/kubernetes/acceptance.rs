//! Selects the versions of the resources that are in force together.
//!
//! In a cluster, resources belong to different users, so they are not accepted or rejected as a whole. An invalid
//! resource keeps its last valid version, and all others are updated. The versions in force always compiled as one set.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use merlon_compile::{Compiler, Mesh};
use merlon_config::{
    Resources,
    load::read_cluster,
    report::{Problem, Report, Severity},
    resource::{Resource, Spec, TargetKind},
};

use super::{
    document::{Document, Key, Version},
    share::Shares,
};
use crate::source::files::same_mesh;

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
    /// The version in force, if it is not the checked generation.
    pub(crate) in_force: Option<Version>,
    /// Whether any version is in force.
    pub(crate) enforced: bool,
}

/// Decides which versions are in force, and keeps the valid ones.
#[derive(Debug)]
pub(crate) struct Acceptance {
    /// The control plane's own namespace. The `MeshConfig` must be there.
    home: String,
    compiler: Compiler,
    /// Shared with the dry run of the validation webhook.
    in_force: Arc<VersionsInForce>,
    /// Shared with it, too.
    shares: Arc<Shares>,
}

/// The versions in force. A deleted resource is kept if other resources need it.
pub(super) type VersionsInForce = BTreeMap<Key, Version>;

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
        for (key, document) in documents {
            if let Some(kept) = &document.in_force
                && !self.in_force.contains_key(key)
            {
                Arc::make_mut(&mut self.in_force).insert(key.clone(), kept.clone());
            }
        }
        let mut trial = Trial {
            compiler: &mut self.compiler,
            running,
            found: found.to_vec(),
            left_out: BTreeMap::new(),
        };
        let (shares, beyond) = Shares::give(&self.home, documents, &self.in_force, &self.shares);
        self.shares = Arc::new(shares);
        let too_many = beyond.into_iter().map(|(key, why)| (key, ("TooMany", why)));
        let too_many: Rejections = too_many.collect();
        let present = documents.iter().filter_map(|(key, document)| {
            let version = match too_many.contains_key(key) {
                true => self.in_force.get(key)?,
                false => &document.present,
            };
            Some((key.clone(), version.clone()))
        });
        let present: VersionsInForce = present.collect();
        let mut rejected = too_many.clone();
        let tried = trial.without_rejected(present, &self.in_force, &mut rejected);
        let mut first = BTreeMap::new();
        let tried = tried.or_else(|_| {
            first = std::mem::replace(&mut rejected, too_many);
            trial.one_by_one(documents, &self.in_force, &mut rejected)
        });
        let left_out = std::mem::take(&mut trial.left_out);
        let (set, compiled) = match tried {
            Ok((set, compiled)) => (set, compiled),
            Err(report) => {
                let verdicts = documents.values().map(|document| {
                    let kept = self.in_force.get(&document.key);
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
                };
            }
        };
        self.in_force = Arc::new(self.checked(set, &compiled.resources));
        let verdicts = documents.values().map(|document| {
            let kept = self.in_force.get(&document.key);
            let verdict = match rejected.remove(&document.key) {
                Some((reason, message)) => refused(document, kept, reason, message),
                None => accepted(document, &compiled),
            };
            (document.key.clone(), verdict)
        });
        Evaluation {
            verdicts: verdicts.collect(),
            mesh: Some(compiled.mesh),
            problems: Report::new(),
            left_out,
        }
    }
}

impl Acceptance {
    /// The versions in force.
    pub(super) fn in_force(&self) -> Arc<VersionsInForce> {
        Arc::clone(&self.in_force)
    }

    /// What the namespaces use of their shares.
    pub(super) fn shares(&self) -> Arc<Shares> {
        Arc::clone(&self.shares)
    }

    /// The versions that were really checked. A policy without targets is not compiled. If it counted as valid and its
    /// target were created later, no changed resource could be blamed for its problems, and all changes would be
    /// blocked.
    fn checked(&self, set: VersionsInForce, resources: &Resources) -> VersionsInForce {
        let checked = set.into_iter().filter_map(|(key, version)| {
            if !has_no_target(&key, resources) {
                return Some((key, version));
            }
            let before = self.in_force.get(&key)?.clone();
            Some((key, before))
        });
        checked.collect()
    }
}

/// Reason and message, by resource.
type Rejections = BTreeMap<Key, (&'static str, String)>;

struct Compiled {
    mesh: Arc<Mesh>,
    resources: Resources,
}

/// A set that did not compile.
struct Failed {
    report: Report,
    /// The resources that could be read.
    read: Resources,
}

struct Trial<'a> {
    compiler: &'a mut Compiler,
    running: Option<&'a Mesh>,
    found: Vec<Resource>,
    /// Problems of left-out entries of `found`, by origin.
    left_out: BTreeMap<String, String>,
}

impl Trial<'_> {
    /// Reverts each changed resource with problems, until the rest compiles.
    ///
    /// # Errors
    /// Only unchanged resources have problems.
    fn without_rejected(
        &mut self,
        mut set: VersionsInForce,
        in_force: &VersionsInForce,
        rejected: &mut Rejections,
    ) -> Result<(VersionsInForce, Compiled), Report> {
        loop {
            let Failed { report, read } = match self.compile(&set) {
                Ok(compiled) => return Ok((set, compiled)),
                Err(failed) => *failed,
            };
            let mut moved = false;
            let blamed: BTreeSet<&str> = errors(&report).map(|p| p.file.as_str()).collect();
            let keys: Vec<Key> = set
                .keys()
                .filter(|key| blamed.contains(key.to_string().as_str()))
                .cloned()
                .collect();
            for key in keys {
                let before = in_force.get(&key);
                if before == set.get(&key) {
                    continue;
                }
                moved = true;
                let message = problems_of(&key, &report, Some(&read)).unwrap_or_default();
                match before {
                    Some(version) => set.insert(key.clone(), version.clone()),
                    None => set.remove(&key),
                };
                rejected.insert(key, ("Invalid", message));
            }
            moved |= self.leave_out(&report);
            if !moved {
                return Err(report);
            }
        }
    }

    /// Applies the changes that are not rejected yet one by one to the versions in force. The oldest resource comes first, so of
    /// two conflicting resources the newer one is rejected.
    ///
    /// # Errors
    /// Even the versions in force no longer compile.
    fn one_by_one(
        &mut self,
        documents: &BTreeMap<Key, Document>,
        in_force: &VersionsInForce,
        rejected: &mut Rejections,
    ) -> Result<(VersionsInForce, Compiled), Report> {
        let mut set = in_force.clone();
        // Nothing compiles without it.
        for (key, document) in documents.iter().filter(|(key, _)| key.kind == "MeshConfig") {
            let present = || document.present.clone();
            set.entry(key.clone()).or_insert_with(present);
        }
        let (_, mut compiled) = self.without_rejected(set.clone(), in_force, rejected)?;
        let mut changed: Vec<&Document> = documents
            .values()
            .filter(|document| in_force.get(&document.key) != Some(&document.present))
            .filter(|document| !rejected.contains_key(&document.key))
            .collect();
        changed.sort_by_key(|document| (document.created, document.key.clone()));
        for document in changed {
            let key = &document.key;
            let mut with = set.clone();
            with.insert(key.clone(), document.present.clone());
            match self.compile(&with) {
                Ok(better) => (set, compiled) = (with, better),
                Err(failed) => {
                    let Failed { report, read } = *failed;
                    let own = problems_of(key, &report, Some(&read));
                    let reason = if own.is_some() {
                        "Invalid"
                    } else {
                        "Conflicted"
                    };
                    let message = own.unwrap_or_else(|| problems_of_others(&report));
                    rejected.insert(key.clone(), (reason, message));
                }
            }
        }
        let gone: Vec<Key> = set
            .keys()
            .filter(|key| !documents.contains_key(key))
            .cloned()
            .collect();
        for key in gone {
            let mut without = set.clone();
            without.remove(&key);
            match self.compile(&without) {
                Ok(better) => (set, compiled) = (without, better),
                Err(failed) => {
                    let Failed { report, read } = *failed;
                    let blamed: Vec<&Key> = documents
                        .keys()
                        .filter(|other| problems_of(other, &report, None).is_some())
                        .collect();
                    for other in blamed {
                        let problem = problems_of(other, &report, Some(&read)).unwrap_or_default();
                        let message = format!(
                            "`{key}` was deleted but stays in force, because this resource needs it: {problem}"
                        );
                        rejected.insert(other.clone(), ("Conflicted", message));
                    }
                }
            }
        }
        Ok((set, compiled))
    }

    fn compile(&mut self, set: &VersionsInForce) -> Result<Compiled, Box<Failed>> {
        let texts = set
            .iter()
            .map(|(key, version)| (key.to_string(), version.text.as_str()));
        let loaded = read_cluster(texts, self.found.clone());
        // Needed to locate problems, even if another text is invalid.
        let read = loaded.resources.clone();
        let compiled = self.compiler.compile_loaded(loaded);
        let compiled = compiled.and_then(|(resources, mesh)| {
            let place = set.keys().find(|key| key.kind == "MeshConfig");
            let place = place.map(Key::to_string).unwrap_or_default();
            self.running
                .map_or(Ok(()), |running| same_mesh(running, &mesh, &place))
                .map(|()| Compiled { mesh, resources })
        });
        compiled.map_err(|report| Box::new(Failed { report, read }))
    }

    /// Leaves out objects of the cluster that Merlon cannot use, so they do not block users' resources.
    fn leave_out(&mut self, report: &Report) -> bool {
        let before = self.found.len();
        let left_out = &mut self.left_out;
        self.found.retain(|resource| {
            let mut own = errors(report).filter(|problem| problem.file == resource.origin);
            let Some(problem) = own.next() else {
                return true;
            };
            let problem = describe(problem, None);
            tracing::warn!(object = resource.origin, problem, "cluster.object_left_out");
            left_out.insert(resource.origin.clone(), problem);
            false
        });
        self.found.len() != before
    }
}

/// Checks a document together with the versions in force, and returns warnings for its user.
///
/// # Errors
/// The problems of the document.
pub(super) fn dry_run(
    compiler: &mut Compiler,
    in_force: &VersionsInForce,
    found: &[Resource],
    running: Option<&Mesh>,
    document: &Document,
) -> Result<Vec<String>, String> {
    let key = &document.key;
    let mut trial = Trial {
        compiler,
        running,
        found: found.to_vec(),
        left_out: BTreeMap::new(),
    };
    let mut with = in_force.clone();
    with.insert(key.clone(), document.present.clone());
    match trial.compile(&with) {
        Ok(compiled) => {
            let verdict = accepted(document, &compiled);
            let lines = verdict
                .message
                .lines()
                .map(|line| format!("merlon: {line}"));
            Ok(match verdict.reason {
                "Accepted" => Vec::new(),
                _ => lines.collect(),
            })
        }
        Err(failed) => {
            let Failed { report, read } = *failed;
            if let Some(own) = problems_of(key, &report, Some(&read)) {
                return Err(own);
            }
            let why = problems_of_others(&report);
            match trial.compile(in_force) {
                Ok(_) => Err(why),
                // The versions in force do not compile, either, so this document is not the cause.
                Err(_) => Ok(vec![format!(
                    "merlon: not validated, because other resources are invalid; check its status: {why}"
                )]),
            }
        }
    }
}

fn errors(report: &Report) -> impl Iterator<Item = &Problem> {
    let problems = report.problems().iter();
    problems.filter(|problem| problem.severity == Severity::Error)
}

/// Maximum number of problems that are reported for one resource.
const MAX_PROBLEMS: usize = 8;

/// The problems of one resource.
fn problems_of(key: &Key, report: &Report, resources: Option<&Resources>) -> Option<String> {
    let file = key.to_string();
    let own = errors(report).filter(|problem| problem.file == file);
    let lines: Vec<String> = own
        .take(MAX_PROBLEMS)
        .map(|problem| describe(problem, start_of_policies(key, resources)))
        .collect();
    (!lines.is_empty()).then(|| lines.join("\n"))
}

fn problems_of_others(report: &Report) -> String {
    let lines: Vec<String> = errors(report)
        .take(MAX_PROBLEMS)
        .map(|problem| {
            format!(
                "with this resource, {} would be invalid: {}",
                problem.file, problem.message
            )
        })
        .collect();
    lines.join("\n")
}

/// Where the text of a policy starts in its document.
fn start_of_policies(key: &Key, resources: Option<&Resources>) -> Option<(u32, u32)> {
    let resources = resources?;
    let (namespace, name) = (key.namespace.parse().ok()?, key.name.parse().ok()?);
    let resource = resources.find(key.kind, &namespace, &name)?;
    let begin = resources.locate_in_text(resource, "spec.policies", 1, 1)?;
    Some((begin.line, begin.column))
}

/// Field, position within the field's text, problem and hint.
fn describe(problem: &Problem, begin: Option<(u32, u32)>) -> String {
    // The cluster does not keep the lines of a user's file, only those within a text field.
    let place = begin
        .filter(|_| problem.field == "spec.policies")
        .and_then(|(line, column)| {
            let line = problem.line.checked_sub(line)?.checked_add(1)?;
            Some((line, problem.column.checked_sub(column)?.checked_add(1)?))
        });
    let place = place.map(|(line, column)| format!(" line {line}, column {column}"));
    let hint = problem.hint.as_ref().map(|hint| format!(" (hint: {hint})"));
    format!(
        "{}{}: {}{}",
        if problem.field.is_empty() {
            "spec"
        } else {
            &problem.field
        },
        place.unwrap_or_default(),
        problem.message,
        hint.unwrap_or_default()
    )
}

fn refused(
    document: &Document,
    kept: Option<&Version>,
    reason: &'static str,
    message: String,
) -> Verdict {
    // The resource itself may be in force unchanged, if it was refused only because it needs a deleted resource.
    let same = kept == Some(&document.present);
    Verdict {
        uid: document.uid.clone(),
        generation: document.present.generation,
        accepted: false,
        reason,
        message,
        in_force: kept.filter(|_| !same).cloned(),
        enforced: kept.is_some(),
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
    }
}

/// Whether none of a policy's targets exists.
fn has_no_target(key: &Key, resources: &Resources) -> bool {
    let found = || {
        let (namespace, name) = (key.namespace.parse().ok()?, key.name.parse().ok()?);
        resources.find(key.kind, &namespace, &name)
    };
    let Some(resource) = found() else {
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
    let found = || {
        let (namespace, name) = (key.namespace.parse().ok()?, key.name.parse().ok()?);
        resources.find(key.kind, &namespace, &name)
    };
    let Some(resource) = found() else {
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
