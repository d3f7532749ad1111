//! Checks the resources together: references, contradictions and ranges.
//!
//! Each kind has its own file. A check reports every problem and continues.

mod authentication;
mod body_schema;
mod checker;
mod gateway;
mod mesh;
mod rate_limit;
mod secret_grant;
mod service;
mod target;
mod text;
mod validation;
mod workload;

use std::collections::BTreeMap;

use self::checker::Checker;
pub(crate) use self::checker::{Checked, Declaration};
use crate::{
    report::Report,
    resource::{Resource, Spec},
};

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
}

#[cfg(test)]
mod tests;
