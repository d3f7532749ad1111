//! What the checks of all kinds share: their input, and how they report problems.

use std::collections::HashSet;

use crate::{
    name::{Namespace, ResourceName},
    report::{Problem, Report},
    resource::Resource,
    resources::Resources,
};

/// A resource that is declared, whether or not the rest of its document can be read.
#[derive(Debug, Clone)]
pub(crate) struct Declaration {
    pub(crate) kind: &'static str,
    pub(crate) namespace: Namespace,
    pub(crate) name: ResourceName,
    pub(crate) origin: String,
}

/// What was read: the input of the checks.
pub(crate) struct Checked<'a> {
    pub(crate) resources: &'a Resources,
    pub(crate) declared: &'a [Declaration],
    /// Whether the name and kind of every document are known. Only then are undeclared resources reported as missing.
    pub(crate) complete: bool,
    /// Whether a missing target is a warning instead of an error.
    pub(crate) allow_missing_targets: bool,
    /// The directory, for problems that belong to no file.
    pub(crate) place: &'a str,
}

impl Checked<'_> {
    /// Whether every declared resource of a kind could be read.
    pub(crate) fn all_read(&self, kind: &str) -> bool {
        let declared = self.declared.iter().filter(|one| one.kind == kind);
        let read = self.resources.list.iter();
        self.complete
            && declared.count() == read.filter(|resource| resource.spec.kind() == kind).count()
    }
}

/// Runs the checks and collects their problems.
pub(super) struct Checker<'a, 'r> {
    pub(super) checked: &'a Checked<'a>,
    pub(super) report: &'r mut Report,
}

impl<'a> Checker<'a, '_> {
    /// The declared names of a kind in a namespace, including resources that could not be read.
    pub(super) fn names_in(
        &self,
        kind: &'static str,
        namespace: &'a Namespace,
    ) -> impl Iterator<Item = &'a ResourceName> + use<'a> {
        let declared = self.checked.declared.iter();
        declared
            .filter(move |one| one.kind == kind && one.namespace == *namespace)
            .map(|one| &one.name)
    }

    pub(super) fn all_read(&self, kind: &str) -> bool {
        self.checked.all_read(kind)
    }

    pub(super) fn error(
        &mut self,
        resource: &Resource,
        field: &str,
        message: impl AsRef<str>,
    ) -> PendingProblem<'_> {
        self.at(&resource.origin, field, message)
    }

    pub(super) fn warning(
        &mut self,
        resource: &Resource,
        field: &str,
        message: impl AsRef<str>,
    ) -> PendingProblem<'_> {
        let mut pending = self.at(&resource.origin, field, message);
        pending.problem = pending.problem.take().map(Problem::warning);
        pending
    }

    pub(super) fn at(
        &mut self,
        origin: &str,
        field: &str,
        message: impl AsRef<str>,
    ) -> PendingProblem<'_> {
        let problem = self.checked.resources.problem_at(origin, field, message);
        self.push(problem)
    }

    pub(super) fn push(&mut self, problem: Problem) -> PendingProblem<'_> {
        PendingProblem {
            problem: Some(problem),
            report: self.report,
        }
    }

    /// Reports each item that occurs in the list before.
    pub(super) fn duplicates<T: Eq + std::hash::Hash + std::fmt::Display>(
        &mut self,
        resource: &Resource,
        what: &str,
        items: impl IntoIterator<Item = (String, T)>,
    ) {
        let mut seen = HashSet::new();
        for (field, item) in items {
            let text = item.to_string();
            if !seen.insert(item) {
                self.error(resource, &field, format!("duplicate {what} `{text}`"));
            }
        }
    }

    /// Reports a number that is out of range.
    pub(super) fn range(
        &mut self,
        resource: &Resource,
        field: &str,
        value: u64,
        (min, max): (u64, u64),
    ) {
        if !(min..=max).contains(&value) {
            let name = field.rsplit('.').next().unwrap_or(field);
            let message = format!("`{name}` must be from {min} to {max}, not {value}");
            self.error(resource, field, message);
        }
    }

    pub(super) fn port(&mut self, resource: &Resource, field: &str, port: u16) {
        self.range(resource, field, port.into(), (1, u16::MAX.into()));
    }
}

/// A problem to which a hint may be added before it enters the report.
pub(super) struct PendingProblem<'r> {
    problem: Option<Problem>,
    report: &'r mut Report,
}

impl PendingProblem<'_> {
    pub(super) fn hint(self, hint: impl AsRef<str>) {
        self.maybe_hint(Some(hint));
    }

    pub(super) fn maybe_hint(mut self, hint: Option<impl AsRef<str>>) {
        self.problem = self.problem.take().map(|problem| problem.maybe_hint(hint));
    }
}

impl Drop for PendingProblem<'_> {
    fn drop(&mut self) {
        if let Some(problem) = self.problem.take() {
            self.report.push(problem);
        }
    }
}
