//! Checks that need the policy decision point: Cedar text, JSON Schema, path templates, token claims.

use std::collections::{BTreeMap, HashSet};

use merlon_config::{
    Resources,
    load::Loaded,
    name::ServiceName,
    report::{Problem, Report},
    resource::{Resource, Spec},
    snapshot::{InboundService, MeshState, Version},
};
use merlon_policy::{problem::PolicyProblem, service::ServicePolicy};

use crate::{assemble::Assembled, gateway::name_of};

/// Hashes of the policies that compiled: equal policies are not compiled again.
pub(crate) type Good = HashSet<Version>;

/// Compiles the policies of every service as a trial, unless the same policies compiled before or for another service.
/// Returns the hashes to pass as `before` next time.
pub(crate) fn check(resources: &Resources, new: &Assembled, before: &Good) -> (Report, Good) {
    let mut good = Good::new();
    let mut found = Found::default();
    for problem in new.documents.problems() {
        found.add(problem);
    }
    for service in &new.inbound {
        let hash = policy_hash(service, new.mesh.state());
        if good.contains(&hash) {
            continue;
        }
        if !before.contains(&hash)
            && let Err(problems) = ServicePolicy::compile(service, new.mesh.state())
        {
            problems.iter().for_each(|problem| found.add(problem));
            continue;
        }
        good.insert(hash);
    }
    let mut report = Report::new();
    names(resources, &mut report);
    report.extend(found.0.values().map(|problem| placed(resources, problem)));
    (report, good)
}

/// Problems beside those that loading found. Problems that may only be a consequence of those are left out.
pub(crate) fn other_problems(loaded: &Loaded, assembled: &Assembled) -> Vec<Problem> {
    let mut found = Found::default();
    let documents = assembled.documents.problems();
    documents.for_each(|problem| found.add(problem));
    // A name that is declared nowhere may be declared in a resource that could not be read, so it is no problem then.
    let all_declared = loaded.all_read(&["RequestAuthentication", "RequestValidation"]);
    for service in &assembled.inbound {
        let mesh = assembled.mesh.state();
        let problems = match all_declared {
            true => ServicePolicy::compile(service, mesh)
                .err()
                .unwrap_or_default(),
            false => ServicePolicy::structural_problems(service, mesh),
        };
        problems.iter().for_each(|problem| found.add(problem));
    }
    let reported: HashSet<_> = loaded.report.problems().iter().map(place).collect();
    let problems = found.0.values();
    let problems = problems.map(|problem| placed(&loaded.resources, problem));
    problems
        .filter(|problem| !reported.contains(&place(problem)))
        .collect()
}

fn place(problem: &Problem) -> (String, u32, u32) {
    (problem.file.clone(), problem.line, problem.column)
}

/// Problems by position, the first one for each. Cedar reports a problem once per action, and a document that does not
/// parse is reported once per service that it applies to.
#[derive(Debug, Default)]
struct Found(BTreeMap<(ServiceName, u32, u32, Option<String>, String), PolicyProblem>);

impl Found {
    fn add(&mut self, problem: &PolicyProblem) {
        let message = match problem.line {
            0 => problem.message.clone(),
            _ => String::new(),
        };
        let key = (
            problem.document.clone(),
            problem.line,
            problem.column,
            problem.field.clone(),
            message,
        );
        self.0.entry(key).or_insert_with(|| problem.clone());
    }
}

/// The hash of everything that decides whether the policies compile: of the service's name only the namespace, and
/// neither ports nor groups.
fn policy_hash(service: &InboundService, mesh: &MeshState) -> Version {
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
    // INVARIANT: like every snapshot type, this serializes to JSON. If it failed, the policies would be compiled each
    // time.
    serde_json::to_vec(&all).map_or_else(
        |_| Version::of(name.to_string().as_bytes()),
        |json| Version::of(&json),
    )
}

/// Gateways and Workloads must have different names, because a proxy identifies its own by name alone. (Gateways and
/// Services, which policies both call `Service::"namespace/name"`, are compared when resources are loaded.)
fn names(resources: &Resources, report: &mut Report) {
    for resource in &resources.list {
        let Spec::Gateway(_) = resource.spec else {
            continue;
        };
        if let Some(other) = resources.find("Workload", &resource.namespace, &resource.name) {
            let name = name_of(resource);
            let message = format!(
                "the Gateway `{name}` has the same name as the Workload at {}",
                other.origin
            );
            let problem = resources.problem(resource, "metadata.name", message);
            report.push(problem.hint("a proxy is identified by this name: rename one of them"));
        }
    }
}

/// The problem with its position in the file.
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

/// The kind of the problem's document, which is derived from the field.
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
