//! What only the decision point can judge: Cedar text, JSON Schema, path templates, tokens' claims.

use merlon_config::{
    Resources,
    name::ServiceName,
    report::{Problem, Report},
    resource::{Resource, Spec},
};
use merlon_policy::{problem::PolicyProblem, service::ServicePolicy};

use crate::{compiler::Assembled, gateway::name_of, mesh::Mesh};

/// Compiles the policies of every service whose version is not that of the last good mesh.
pub(crate) fn check(resources: &Resources, new: &Assembled, last: Option<&Mesh>) -> Report {
    let mut report = Report::new();
    names(resources, &mut report);
    for problem in new.documents.problems() {
        report.push(placed(resources, problem));
    }
    let last = last.filter(|last| last.mesh.version() == new.mesh.mesh.version());
    for service in &new.inbound {
        let version = |mesh: &Mesh| {
            mesh.services
                .get(&service.name)
                .map(|s| s.version().clone())
        };
        let known = last.is_some_and(|last| version(last) == version(&new.mesh));
        // A document that is no Cedar at all was told of once, not once per service that it reaches.
        if known || !new.documents.readable(&service.policies) {
            continue;
        }
        if let Err(problems) = ServicePolicy::compile(service, new.mesh.state()) {
            report.extend(problems.iter().map(|problem| placed(resources, problem)));
        }
    }
    report
}

/// Policies speak of Services and Gateways alike as `Service::"namespace/name"`, and a proxy knows its own Workload or
/// Gateway by name alone: so these names are shared.
fn names(resources: &Resources, report: &mut Report) {
    for resource in &resources.list {
        if !matches!(resource.spec, Spec::Gateway(_)) {
            continue;
        }
        for kind in ["Service", "Workload"] {
            if let Some(other) = resources.find(kind, &resource.namespace, &resource.name) {
                let message = format!(
                    "the Gateway `{}` has the name of the {kind} at {}",
                    name_of(resource),
                    other.origin
                );
                let problem = resources.problem(resource, "metadata.name", message);
                report.push(
                    problem.hint("policies and proxies could not tell them apart: rename one"),
                );
            }
        }
    }
}

/// The problem at its place in the file.
fn placed(resources: &Resources, problem: &PolicyProblem) -> Problem {
    let kind = kind_of(problem);
    let found = resources
        .list
        .iter()
        .find(|resource| is(resource, kind, &problem.document));
    let Some(resource) = found else {
        return Problem::error(&problem.origin, problem.to_string());
    };
    let message = &problem.message;
    let placed = match &problem.field {
        Some(field) => resources.problem(resource, field, message),
        None if problem.line > 0 => {
            let place = (problem.line, problem.column, 1);
            resources.problem_in_text(resource, "spec.policies", place, message)
        }
        None => resources.problem(resource, "spec", message),
    };
    placed.maybe_hint(problem.hint.as_ref())
}

fn is(resource: &Resource, kind: &str, name: &ServiceName) -> bool {
    resource.spec.kind() == kind && name_of(resource) == *name
}

/// A problem names its document and not the document's kind: the field tells.
fn kind_of(problem: &PolicyProblem) -> &'static str {
    let field = problem.field.as_deref().unwrap_or("spec.policies");
    let begins = |with: &str| field.starts_with(with);
    if begins("spec.issuers") || begins("spec.required") {
        "RequestAuthentication"
    } else if begins("spec.limits[") {
        "RateLimit"
    } else if begins("spec.routes") || begins("spec.limits") || begins("spec.unknownRoutes") {
        "RequestValidation"
    } else {
        "AuthorizationPolicy"
    }
}
