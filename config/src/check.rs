//! Whether the resources make sense together: what refers to what, what excludes what, and what is out of range.
//!
//! One kind, one file; each says everything that is wrong, and goes on.

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

/// That something is named, whether or not the rest of it can be read.
#[derive(Debug, Clone)]
pub(crate) struct Claim {
    pub(crate) kind: &'static str,
    pub(crate) namespace: Namespace,
    pub(crate) name: ResourceName,
    pub(crate) origin: String,
}

/// What was read, as the checks see it.
pub(crate) struct Checked<'a> {
    pub(crate) resources: &'a Resources,
    pub(crate) claims: &'a [Claim],
    /// Whether it is known of every document what it names: only then is something that is not there missing.
    pub(crate) complete: bool,
    /// Whether a target that is not there is a reason to warn, and not to refuse.
    pub(crate) targets_may_come_later: bool,
    /// The directory, for what is wrong with no file of it.
    pub(crate) place: &'a str,
}

impl Checked<'_> {
    /// Whether every resource of a kind that is named could also be read.
    pub(crate) fn all_read(&self, kind: &str) -> bool {
        let named = self.claims.iter().filter(|claim| claim.kind == kind);
        let read = self.resources.list.iter();
        self.complete
            && named.count() == read.filter(|resource| resource.spec.kind() == kind).count()
    }
}

/// Adds everything that is wrong to `report`.
pub(crate) fn check(checked: &Checked<'_>, report: &mut Report) {
    let mut checker = Checker { checked, report };
    checker.unique_names();
    checker.one_mesh();
    checker.issuers_mean_one_thing();
    checker.mesh_addresses();
    checker.own_addresses();
    checker.secret_headers_are_one();
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
                    let hint = "without a policy everything is denied, and that needs no document: leave it out";
                    self.error(resource, "spec.policies", "there is no policy in this text")
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
        let mut first: BTreeMap<_, &Claim> = BTreeMap::new();
        for claim in self.checked.claims {
            // Policies call a Gateway `Service::"namespace/name"`, so it shares the names of Services.
            let kind = match claim.kind {
                "Gateway" => "Service",
                other => other,
            };
            let Some(other) = first.get(&(kind, &claim.namespace, &claim.name)) else {
                first.insert((kind, &claim.namespace, &claim.name), claim);
                continue;
            };
            let message = if other.kind == claim.kind {
                format!(
                    "there are two {}s `{}/{}`",
                    claim.kind, claim.namespace, claim.name
                )
            } else {
                format!(
                    "a {} and a {} are both `{}/{}`, and policies could not tell them apart",
                    other.kind, claim.kind, claim.namespace, claim.name
                )
            };
            let hint = format!("the first is at {}", other.origin);
            self.at(&claim.origin, "metadata.name", &message).hint(hint);
        }
    }

    /// The names of a kind in a namespace, also of those that could not be read.
    fn names_in(
        &self,
        kind: &'static str,
        namespace: &'a Namespace,
    ) -> impl Iterator<Item = &'a ResourceName> + use<'a> {
        let claims = self.checked.claims.iter();
        claims
            .filter(move |claim| claim.kind == kind && claim.namespace == *namespace)
            .map(|claim| &claim.name)
    }

    fn all_read(&self, kind: &str) -> bool {
        self.checked.all_read(kind)
    }

    fn error(&mut self, resource: &Resource, field: &str, message: impl AsRef<str>) -> Said<'_> {
        self.at(&resource.origin, field, message)
    }

    fn warning(&mut self, resource: &Resource, field: &str, message: impl AsRef<str>) -> Said<'_> {
        let mut said = self.at(&resource.origin, field, message);
        said.problem = said.problem.take().map(Problem::warning);
        said
    }

    fn at(&mut self, origin: &str, field: &str, message: impl AsRef<str>) -> Said<'_> {
        let problem = self.checked.resources.problem_at(origin, field, message);
        self.say(problem)
    }

    fn say(&mut self, problem: Problem) -> Said<'_> {
        Said {
            problem: Some(problem),
            report: self.report,
        }
    }

    /// Says of each that stands in a list for the second time that it does.
    fn twice<T: Eq + std::hash::Hash + std::fmt::Display>(
        &mut self,
        resource: &Resource,
        what: &str,
        items: impl IntoIterator<Item = (String, T)>,
    ) {
        let mut seen = HashSet::new();
        for (field, item) in items {
            let text = item.to_string();
            if !seen.insert(item) {
                self.error(resource, &field, format!("there are two {what} `{text}`"));
            }
        }
    }

    /// Says that a number is out of its range, if it is.
    fn range(&mut self, resource: &Resource, field: &str, value: u64, (least, most): (u64, u64)) {
        if !(least..=most).contains(&value) {
            let name = field.rsplit('.').next().unwrap_or(field);
            let message = format!("`{name}` must be from {least} to {most}, not {value}");
            self.error(resource, field, message);
        }
    }

    fn port(&mut self, resource: &Resource, field: &str, port: u16) {
        self.range(resource, field, port.into(), (1, u16::MAX.into()));
    }
}

/// A problem on its way into the report, to which a hint may be added.
struct Said<'r> {
    problem: Option<Problem>,
    report: &'r mut Report,
}

impl Said<'_> {
    fn hint(self, hint: impl AsRef<str>) {
        self.maybe_hint(Some(hint));
    }

    fn maybe_hint(mut self, hint: Option<impl AsRef<str>>) {
        self.problem = self.problem.take().map(|problem| problem.maybe_hint(hint));
    }
}

impl Drop for Said<'_> {
    fn drop(&mut self) {
        if let Some(problem) = self.problem.take() {
            self.report.push(problem);
        }
    }
}

#[cfg(test)]
mod tests;
