//! What only the decision point can judge: Cedar text, JSON Schema, path templates, tokens' claims.

use std::collections::HashSet;

use merlon_config::{
    Resources,
    name::ServiceName,
    report::{Problem, Report},
    resource::{Resource, Spec},
    snapshot::{InboundService, MeshState, Version},
};
use merlon_policy::{problem::PolicyProblem, service::ServicePolicy};

use crate::{compiler::Assembled, gateway::name_of};

/// What was found good, by the hash of all that the decision point judges: equal texts need no second look.
pub(crate) type Good = HashSet<Version>;

/// Compiles the policies of every service for trial, unless the same were good before or for another service.
/// On success the second part is what to bring next time.
pub(crate) fn check(resources: &Resources, new: &Assembled, before: &Good) -> (Report, Good) {
    let mut report = Report::new();
    let mut good = Good::new();
    names(resources, &mut report);
    for problem in new.documents.problems() {
        report.push(placed(resources, problem));
    }
    for service in &new.inbound {
        // A document that is no Cedar at all was told of once, not once per service that it reaches.
        if !new.documents.readable(&service.policies) {
            continue;
        }
        let judged = judged(service, new.mesh.state());
        if good.contains(&judged) {
            continue;
        }
        if !before.contains(&judged)
            && let Err(problems) = ServicePolicy::compile(service, new.mesh.state())
        {
            let problems = first_of_each_place(&problems);
            report.extend(problems.map(|problem| placed(resources, problem)));
            continue;
        }
        good.insert(judged);
    }
    (report, good)
}

/// Of the service's own name only the namespace can make its policies good or bad; ports and groups cannot.
fn judged(service: &InboundService, mesh: &MeshState) -> Version {
    let InboundService {
        name,
        ports: _,
        groups: _,
        policies,
        workload_groups: _,
        declared_elsewhere,
        authentication,
        limits,
        validation,
    } = service;
    let all = (
        mesh,
        &name.namespace,
        policies,
        declared_elsewhere,
        authentication,
        limits,
        validation,
    );
    // INVARIANT: as for every snapshot type, this is JSON; were it not, nothing would count as seen twice.
    serde_json::to_vec(&all).map_or_else(
        |_| Version::of(name.to_string().as_bytes()),
        |json| Version::of(&json),
    )
}

/// A proxy knows its own Workload or Gateway by name alone: so these names are shared. (That Gateways and Services
/// share theirs, since policies speak of both as `Service::"namespace/name"`, the resources' own check sees to.)
fn names(resources: &Resources, report: &mut Report) {
    for resource in &resources.list {
        let Spec::Gateway(_) = resource.spec else {
            continue;
        };
        if let Some(other) = resources.find("Workload", &resource.namespace, &resource.name) {
            let name = name_of(resource);
            let message = format!(
                "the Gateway `{name}` has the name of the Workload at {}",
                other.origin
            );
            let problem = resources.problem(resource, "metadata.name", message);
            report.push(problem.hint("a proxy is told what it is by this name: rename one"));
        }
    }
}

/// Of several problems at one place the first: Cedar says the same of every action that a policy is for.
fn first_of_each_place(problems: &[PolicyProblem]) -> impl Iterator<Item = &PolicyProblem> {
    let mut seen = HashSet::new();
    problems.iter().filter(move |problem| {
        problem.line == 0 || seen.insert((&problem.document, problem.line, problem.column))
    })
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
