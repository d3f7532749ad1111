//! Checks the resources together: references, contradictions and ranges.
//!
//! Each kind has its own file. A check reports every problem and continues.

mod authentication;
mod gateway;
mod mesh;
mod rate_limit;
mod secret_grant;
mod service;
mod target;
mod text;
mod validation;
mod workload;

use std::collections::{BTreeMap, HashSet};

use crate::{
    name::{Namespace, ResourceName},
    report::{Problem, Report},
    resource::{Resource, Spec},
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

/// Adds all problems to `report`.
pub(crate) fn check(checked: &Checked<'_>, report: &mut Report) {
    let mut checker = Checker { checked, report };
    checker.unique_names();
    checker.single_mesh_config();
    checker.unique_issuer_names();
    checker.unique_mesh_addresses();
    checker.unique_addresses();
    checker.unique_secret_headers();
    for resource in &checked.resources.list {
        checker.resource(resource);
    }
}

struct Checker<'a, 'r> {
    checked: &'a Checked<'a>,
    report: &'r mut Report,
}

impl<'a> Checker<'a, '_> {
    fn resource(&mut self, resource: &'a Resource) {
        match &resource.spec {
            Spec::MeshConfig(spec) => self.mesh(resource, spec),
            Spec::Workload(spec) => self.workload(resource, spec),
            Spec::Service(spec) => self.service(resource, spec),
            Spec::AuthorizationPolicy(spec) => {
                self.targets(resource, &spec.target_refs);
                if spec.policies.trim().is_empty() {
                    let hint = "remove the document: without a policy, every request is denied";
                    self.error(resource, "spec.policies", "`policies` contains no policy")
                        .hint(hint);
                }
            }
            Spec::RequestAuthentication(spec) => {
                self.targets(resource, &spec.target_refs);
                self.authentication(resource, spec);
            }
            Spec::RateLimit(spec) => {
                self.targets(resource, &spec.target_refs);
                self.rate_limit(resource, spec);
            }
            Spec::RequestValidation(spec) => {
                self.targets(resource, &spec.target_refs);
                self.validation(resource, spec);
            }
            Spec::SecretGrant(spec) => self.secret_grant(resource, spec),
            Spec::Gateway(spec) => self.gateway(resource, spec),
            Spec::HttpRoute(spec) => self.route(resource, spec),
        }
    }

    fn unique_names(&mut self) {
        let mut first: BTreeMap<_, &Declaration> = BTreeMap::new();
        for one in self.checked.declared {
            // Policies refer to a Gateway as `Service::"namespace/name"`, so it shares the names of Services.
            let kind = match one.kind {
                "Gateway" => "Service",
                other => other,
            };
            let Some(other) = first.get(&(kind, &one.namespace, &one.name)) else {
                first.insert((kind, &one.namespace, &one.name), one);
                continue;
            };
            let message = if other.kind == one.kind {
                format!("duplicate {} `{}/{}`", one.kind, one.namespace, one.name)
            } else {
                format!(
                    "a {} and a {} are both named `{}/{}`, which is ambiguous in policies",
                    other.kind, one.kind, one.namespace, one.name
                )
            };
            let hint = format!("the first is defined at {}", other.origin);
            self.at(&one.origin, "metadata.name", &message).hint(hint);
        }
    }

    /// The declared names of a kind in a namespace, including resources that could not be read.
    fn names_in(
        &self,
        kind: &'static str,
        namespace: &'a Namespace,
    ) -> impl Iterator<Item = &'a ResourceName> + use<'a> {
        let declared = self.checked.declared.iter();
        declared
            .filter(move |one| one.kind == kind && one.namespace == *namespace)
            .map(|one| &one.name)
    }

    fn all_read(&self, kind: &str) -> bool {
        self.checked.all_read(kind)
    }

    fn error(
        &mut self,
        resource: &Resource,
        field: &str,
        message: impl AsRef<str>,
    ) -> PendingProblem<'_> {
        self.at(&resource.origin, field, message)
    }

    fn warning(
        &mut self,
        resource: &Resource,
        field: &str,
        message: impl AsRef<str>,
    ) -> PendingProblem<'_> {
        let mut pending = self.at(&resource.origin, field, message);
        pending.problem = pending.problem.take().map(Problem::warning);
        pending
    }

    fn at(&mut self, origin: &str, field: &str, message: impl AsRef<str>) -> PendingProblem<'_> {
        let problem = self.checked.resources.problem_at(origin, field, message);
        self.push(problem)
    }

    fn push(&mut self, problem: Problem) -> PendingProblem<'_> {
        PendingProblem {
            problem: Some(problem),
            report: self.report,
        }
    }

    /// Reports each item that occurs in the list before.
    fn duplicates<T: Eq + std::hash::Hash + std::fmt::Display>(
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
    fn range(&mut self, resource: &Resource, field: &str, value: u64, (min, max): (u64, u64)) {
        if !(min..=max).contains(&value) {
            let name = field.rsplit('.').next().unwrap_or(field);
            let message = format!("`{name}` must be from {min} to {max}, not {value}");
            self.error(resource, field, message);
        }
    }

    fn port(&mut self, resource: &Resource, field: &str, port: u16) {
        self.range(resource, field, port.into(), (1, u16::MAX.into()));
    }
}

/// A problem to which a hint may be added before it enters the report.
struct PendingProblem<'r> {
    problem: Option<Problem>,
    report: &'r mut Report,
}

impl PendingProblem<'_> {
    fn hint(self, hint: impl AsRef<str>) {
        self.maybe_hint(Some(hint));
    }

    fn maybe_hint(mut self, hint: Option<impl AsRef<str>>) {
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

#[cfg(test)]
mod tests;
