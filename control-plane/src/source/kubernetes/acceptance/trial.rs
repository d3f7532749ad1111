//! Finds the versions that compile together.
//!
//! Users of a namespace must be able to stop neither the changes of others nor those of the root namespace, and nothing that was
//! in force may stop applying by a change of another owner. So the number of compilations is bounded for each namespace, the root
//! namespace's resources come first, and where a resource that was in force contradicts them or is no longer valid, its targets
//! are denied.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use merlon_compile::{Compiler, Mesh};
use merlon_config::{Resources, load::read_cluster, report::Report, resource::Resource};

use super::{
    super::document::{Document, Key, Version},
    InForce, VersionsInForce, accepted,
    problems::{MAX_PROBLEMS, describe, errors, problems_of, problems_of_others},
    stand_in::stand_in,
};
use crate::source::files::same_mesh;

/// How many changes of a namespace are rejected one by one in an evaluation. The others wait, because each costs several
/// compilations of the mesh.
const MAX_REFUSALS: usize = 8;

/// How many compilations an evaluation makes to find out which deleted resources are no longer needed.
const MAX_REMOVALS: usize = 16;

/// Reason and message, by resource.
pub(super) type Rejections = BTreeMap<Key, (&'static str, String)>;

#[derive(Debug)]
pub(super) struct Compiled {
    pub(super) mesh: Arc<Mesh>,
    pub(super) resources: Resources,
}

/// A set that did not compile.
struct Failed {
    report: Report,
    /// The resources that could be read.
    read: Resources,
}

/// Versions that compile together.
#[derive(Debug)]
pub(super) struct Selection {
    pub(super) set: VersionsInForce,
    pub(super) compiled: Compiled,
    pub(super) denied: BTreeMap<Key, Denied>,
}

/// A resource that was in force and cannot be.
#[derive(Debug, Clone)]
pub(super) struct Denied {
    /// What was in force.
    pub(super) version: Version,
    /// The policy in its place that denies its targets.
    pub(super) stand_in: Option<Version>,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

pub(super) struct Trial<'a> {
    compiler: &'a mut Compiler,
    /// The root namespace.
    root: &'a str,
    running: Option<&'a Mesh>,
    found: Vec<Resource>,
    /// Problems of left-out entries of `found`, by origin.
    pub(super) left_out: BTreeMap<String, String>,
    /// How often the mesh was compiled.
    pub(super) compilations: u32,
}

impl<'a> Trial<'a> {
    pub(super) fn new(
        compiler: &'a mut Compiler,
        (root, running): (&'a str, Option<&'a Mesh>),
        found: &[Resource],
    ) -> Self {
        Self {
            compiler,
            root,
            running,
            found: found.to_vec(),
            left_out: BTreeMap::new(),
            compilations: 0,
        }
    }

    /// Applies all changes at once, except those that are invalid.
    ///
    /// # Errors
    /// Those of [`Self::without_rejected`].
    pub(super) fn all_changes(
        &mut self,
        documents: &BTreeMap<Key, Document>,
        before: &InForce,
        rejected: &mut Rejections,
    ) -> Result<Selection, Report> {
        let present = documents.iter().filter_map(|(key, document)| {
            let version = match rejected.contains_key(key) {
                true => before.versions.get(key)?,
                false => &document.present,
            };
            Some((key.clone(), version.clone()))
        });
        let (set, compiled) =
            self.without_rejected(present.collect(), &before.versions, rejected)?;
        Ok(Selection {
            set,
            compiled,
            denied: BTreeMap::new(),
        })
    }

    /// Reverts each changed resource with problems, until the rest compiles.
    ///
    /// # Errors
    /// Only unchanged resources have problems, or a changed resource of the root namespace has some only together with those of
    /// other namespaces.
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
            let mut changed = blamed(&set, &report);
            changed.retain(|key| in_force.get(key) != set.get(key));
            if changed.iter().any(|key| key.namespace == self.root) {
                let alone = self.of_root(&set);
                let Err(failed) = self.compile(&alone) else {
                    return Err(report);
                };
                let wrong = blamed(&alone, &failed.report);
                changed.retain(|key| key.namespace != self.root || wrong.contains(key));
            }
            let mut moved = !changed.is_empty();
            for key in changed {
                let message = problems_of(&key, &report, Some(&read)).unwrap_or_default();
                replace(&mut set, &key, in_force.get(&key));
                rejected.insert(key, ("Invalid", message));
            }
            moved |= self.leave_out(&report);
            if !moved {
                return Err(report);
            }
        }
    }

    /// Applies changes by precedence: those of the root namespace first, then the oldest resource, so that of two conflicting
    /// resources the newer one is rejected. Then removes the deleted resources that no other one needs.
    ///
    /// # Errors
    /// The versions in force of the root namespace no longer compile.
    pub(super) fn by_precedence(
        &mut self,
        documents: &BTreeMap<Key, Document>,
        before: &InForce,
        rejected: &mut Rejections,
    ) -> Result<Selection, Report> {
        let mut selection = self.still_valid(documents, before)?;
        let mut changes: Vec<&Document> = documents
            .values()
            .filter(|document| before.versions.get(&document.key) != Some(&document.present))
            .filter(|document| !rejected.contains_key(&document.key))
            .collect();
        changes.sort_by_key(|document| {
            let other = document.key.namespace != self.root;
            (other, document.created, document.key.clone())
        });
        self.apply_at_once(&mut selection, &changes, rejected);
        self.restore(&mut selection);
        let all = selection.set.keys().chain(selection.denied.keys());
        let mut gone: Vec<Key> = all
            .filter(|key| !documents.contains_key(key))
            .cloned()
            .collect();
        // What was needed before, is probably still needed.
        gone.sort_by_key(|key| (before.retained.contains(key), key.clone()));
        gone.dedup();
        let mut tries = MAX_REMOVALS;
        self.remove(&mut selection, &gone, &mut tries, rejected);
        Ok(selection)
    }

    /// What is in force, as far as it still compiles. The cluster's objects may have changed, or this version of Merlon is
    /// stricter than the one that accepted it.
    fn still_valid(
        &mut self,
        documents: &BTreeMap<Key, Document>,
        before: &InForce,
    ) -> Result<Selection, Report> {
        let mut set = before.applied();
        // Nothing compiles without it.
        for (key, document) in documents.iter().filter(|(key, _)| key.kind == "MeshConfig") {
            let present = || document.present.clone();
            set.entry(key.clone()).or_insert_with(present);
        }
        let mut denied = before.denied.clone();
        loop {
            let Failed { report, read } = match self.compile(&set) {
                Ok(compiled) => {
                    return Ok(Selection {
                        set,
                        compiled,
                        denied,
                    });
                }
                Err(failed) => *failed,
            };
            let mut moved = self.leave_out(&report);
            for key in blamed(&set, &report) {
                let (false, Some(version)) = (key.namespace == self.root, set.get(&key).cloned())
                else {
                    continue;
                };
                let again = denied.get(&key);
                // The policy that denies the targets may be invalid, too. If that of the whole namespace is, nothing helps.
                if again.is_some() && version.spec.get("targetRefs").is_none() {
                    continue;
                }
                moved = true;
                let stand_in = stand_in(&set, &key, &version, again.is_some());
                let denied = denied.entry(key.clone()).or_insert_with(|| Denied {
                    version,
                    stand_in: None,
                    reason: "Invalid",
                    message: problems_of(&key, &report, Some(&read)).unwrap_or_default(),
                });
                replace(&mut set, &key, stand_in.as_ref());
                denied.stand_in = stand_in;
            }
            if moved {
                continue;
            }
            let of_root = self.of_root(&set);
            let selection = self.with_others(of_root, denied, &set);
            return selection.ok_or(report);
        }
    }

    fn apply_at_once(
        &mut self,
        selection: &mut Selection,
        changes: &[&Document],
        rejected: &mut Rejections,
    ) {
        let mut with = selection.set.clone();
        with.extend(changes.iter().map(|document| document.change()));
        let mut wrong = Rejections::new();
        let Ok((set, compiled)) = self.without_rejected(with, &selection.set, &mut wrong) else {
            return self.apply(selection, changes, rejected);
        };
        (selection.set, selection.compiled) = (set, compiled);
        let applied = changes
            .iter()
            .filter(|document| !wrong.contains_key(&document.key));
        for document in applied {
            selection.denied.remove(&document.key);
        }
        rejected.append(&mut wrong);
    }

    /// Halves the changes until each half either compiles or is a single one.
    fn apply(
        &mut self,
        selection: &mut Selection,
        changes: &[&Document],
        rejected: &mut Rejections,
    ) {
        let mut due = Vec::with_capacity(changes.len());
        for document in changes {
            let namespace = &document.key.namespace;
            let others = rejected
                .iter()
                .filter(|(key, (reason, _))| key.namespace == *namespace && *reason != "TooMany");
            if namespace != self.root && others.count() >= MAX_REFUSALS {
                let why = format!(
                    "not evaluated, because {MAX_REFUSALS} other changes in namespace `{namespace}` cannot be in force (hint: correct or delete those first)"
                );
                rejected.insert(document.key.clone(), ("Conflicted", why));
            } else {
                due.push(*document);
            }
        }
        let Some(first) = due.first() else {
            return;
        };
        let mut with = selection.set.clone();
        with.extend(due.iter().map(|document| document.change()));
        match self.compile(&with) {
            Ok(compiled) => {
                (selection.set, selection.compiled) = (with, compiled);
                for document in due {
                    selection.denied.remove(&document.key);
                }
            }
            Err(failed) if due.len() == 1 => {
                if let Some(better) = self.with_precedence(selection, first) {
                    *selection = better;
                } else {
                    rejected.insert(first.key.clone(), failed.refusal(&first.key));
                }
            }
            Err(_) => {
                let (older, newer) = due.split_at(due.len() / 2);
                self.apply(selection, older, rejected);
                self.apply(selection, newer, rejected);
            }
        }
    }

    /// The selection with a change of the root namespace, and without what contradicts it in other namespaces. `None` if the
    /// change is of another namespace or invalid by itself.
    fn with_precedence(&mut self, selection: &Selection, document: &Document) -> Option<Selection> {
        if document.key.namespace != self.root {
            return None;
        }
        let mut of_root = self.of_root(&selection.set);
        of_root.extend([document.change()]);
        self.with_others(of_root, selection.denied.clone(), &selection.set)
    }

    /// The versions of the root namespace, and then what is in force in the other namespaces. `None` if the former do not
    /// compile, or the latter cannot even be denied.
    fn with_others(
        &mut self,
        of_root: VersionsInForce,
        denied: BTreeMap<Key, Denied>,
        set: &VersionsInForce,
    ) -> Option<Selection> {
        let mut selection = Selection {
            compiled: self.compile(&of_root).ok()?,
            set: of_root,
            denied,
        };
        let others = set.iter().filter(|(key, _)| key.namespace != self.root);
        let others: Vec<_> = others
            .map(|(key, version)| (key.clone(), version.clone()))
            .collect();
        self.readmit(&mut selection, &others)?;
        Some(selection)
    }

    /// Adds what is in force in other namespaces, and denies what no longer can be. `None` if even that does not compile.
    fn readmit(&mut self, selection: &mut Selection, others: &[(Key, Version)]) -> Option<()> {
        let Some((key, version)) = others.first() else {
            return Some(());
        };
        let mut with = selection.set.clone();
        with.extend(others.iter().cloned());
        let failed = match self.compile(&with) {
            Ok(compiled) => {
                (selection.set, selection.compiled) = (with, compiled);
                return Some(());
            }
            Err(failed) => failed,
        };
        if others.len() > 1 {
            let (left, right) = others.split_at(others.len() / 2);
            self.readmit(selection, left)?;
            return self.readmit(selection, right);
        }
        for whole_namespace in [false, true] {
            let mut with = selection.set.clone();
            let stand_in = stand_in(&with, key, version, whole_namespace);
            replace(&mut with, key, stand_in.as_ref());
            if let Ok(compiled) = self.compile(&with) {
                (selection.set, selection.compiled) = (with, compiled);
                let denied = Denied {
                    version: version.clone(),
                    stand_in: None,
                    reason: "Conflicted",
                    message: failed.refusal(key).1,
                };
                let denied = selection.denied.entry(key.clone()).or_insert(denied);
                denied.stand_in = stand_in;
                return Some(());
            }
        }
        None
    }

    /// Puts what was denied in force again, if the changes have corrected its problem.
    fn restore(&mut self, selection: &mut Selection) {
        if selection.denied.is_empty() {
            return;
        }
        let mut with = selection.set.clone();
        let denied = selection.denied.iter();
        with.extend(denied.map(|(key, denied)| (key.clone(), denied.version.clone())));
        // What is denied counts as changed, so it is what is reverted.
        let mut wrong = Rejections::new();
        if let Ok((set, compiled)) = self.without_rejected(with, &selection.set, &mut wrong) {
            (selection.set, selection.compiled) = (set, compiled);
            selection.denied.retain(|key, _| wrong.contains_key(key));
        }
    }

    /// Removes deleted resources that no other one needs, half of them at a time.
    fn remove(
        &mut self,
        selection: &mut Selection,
        gone: &[Key],
        tries: &mut usize,
        rejected: &mut Rejections,
    ) {
        let (Some(key), Some(left)) = (gone.first(), tries.checked_sub(1)) else {
            return;
        };
        *tries = left;
        let mut without = selection.set.clone();
        without.retain(|key, _| !gone.contains(key));
        let failed = match self.compile(&without) {
            Ok(compiled) => {
                (selection.set, selection.compiled) = (without, compiled);
                selection.denied.retain(|key, _| !gone.contains(key));
                return;
            }
            Err(failed) => *failed,
        };
        if gone.len() > 1 {
            let (left, right) = gone.split_at(gone.len() / 2);
            self.remove(selection, left, tries, rejected);
            return self.remove(selection, right, tries, rejected);
        }
        let Failed { report, read } = failed;
        for other in blamed(&without, &report) {
            let problem = problems_of(&other, &report, Some(&read)).unwrap_or_default();
            let message = format!(
                "`{key}` was deleted but stays in force, because this resource needs it: {problem}"
            );
            rejected.entry(other).or_insert(("Conflicted", message));
        }
    }

    fn of_root(&self, set: &VersionsInForce) -> VersionsInForce {
        let of_root = set.iter().filter(|(key, _)| key.namespace == self.root);
        of_root
            .map(|(key, version)| (key.clone(), version.clone()))
            .collect()
    }

    fn compile(&mut self, set: &VersionsInForce) -> Result<Compiled, Box<Failed>> {
        self.compilations = self.compilations.saturating_add(1);
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

impl Failed {
    /// Reason and message for a resource that does not compile with the others.
    fn refusal(&self, key: &Key) -> (&'static str, String) {
        match problems_of(key, &self.report, Some(&self.read)) {
            Some(own) => ("Invalid", own),
            None => ("Conflicted", problems_of_others(&self.report)),
        }
    }
}

/// The resources of a set that have problems.
fn blamed(set: &VersionsInForce, report: &Report) -> Vec<Key> {
    let files: BTreeSet<&str> = errors(report)
        .map(|problem| problem.file.as_str())
        .collect();
    let keys = set.keys();
    keys.filter(|key| files.contains(key.to_string().as_str()))
        .cloned()
        .collect()
}

pub(super) fn replace(set: &mut VersionsInForce, key: &Key, version: Option<&Version>) {
    match version {
        Some(version) => set.insert(key.clone(), version.clone()),
        None => set.remove(key),
    };
}

/// Checks a document together with what is in force, and returns warnings for its user.
///
/// # Errors
/// The problems of the document.
pub(crate) fn dry_run(
    compiler: &mut Compiler,
    (root, running): (&str, Option<&Mesh>),
    found: &[Resource],
    before: &InForce,
    document: &Document,
) -> Result<Vec<String>, String> {
    let mut trial = Trial::new(compiler, (root, running), found);
    let key = &document.key;
    let applied = before.applied();
    let mut with = applied.clone();
    with.extend([document.change()]);
    let failed = match trial.compile(&with) {
        Ok(compiled) => {
            let verdict = accepted(document, &compiled);
            let lines = verdict.message.lines();
            return Ok(match verdict.reason {
                "Accepted" => Vec::new(),
                _ => lines.map(|line| format!("merlon: {line}")).collect(),
            });
        }
        Err(failed) => failed,
    };
    let (reason, why) = failed.refusal(key);
    let compiled = match trial.compile(&applied) {
        // What is in force does not compile, either, so this document is not the cause.
        Err(_) if reason == "Conflicted" => {
            return Ok(vec![format!(
                "merlon: not validated, because other resources are invalid; check its status: {why}"
            )]);
        }
        Err(_) => return Err(why),
        Ok(compiled) => compiled,
    };
    let selection = Selection {
        set: applied,
        compiled,
        denied: before.denied.clone(),
    };
    let better = trial.with_precedence(&selection, document).ok_or(why)?;
    let denied = better.denied.iter();
    let denied = denied.filter(|(key, _)| !before.denied.contains_key(key));
    let warnings = denied.take(MAX_PROBLEMS).map(|(key, denied)| {
        format!(
            "merlon: `{key}` cannot be in force with this resource, so all requests to its targets will be denied: {}",
            denied.message
        )
    });
    Ok(warnings.collect())
}
