//! What only the decision point can judge: Cedar text, JSON Schema, path templates, tokens' claims.

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

/// What was found good, by the hash of all that the decision point judges: equal texts need no second look.
pub(crate) type Good = HashSet<Version>;

/// Compiles the policies of every service for trial, unless the same were good before or for another service.
/// On success the second part is what to bring next time.
pub(crate) fn check(resources: &Resources, new: &Assembled, before: &Good) -> (Report, Good) {
    let mut good = Good::new();
    let mut found = Found::default();
    for problem in new.documents.problems() {
        found.add(problem);
    }
    for service in &new.inbound {
        let judged = judged(service, new.mesh.state());
        if good.contains(&judged) {
            continue;
        }
        if !before.contains(&judged)
            && let Err(problems) = ServicePolicy::compile(service, new.mesh.state())
        {
            problems.iter().for_each(|problem| found.add(problem));
            continue;
        }
        good.insert(judged);
    }
    let mut report = Report::new();
    names(resources, &mut report);
    report.extend(found.0.values().map(|problem| placed(resources, problem)));
    (report, good)
}

/// What is wrong beside that which kept resources from being read. Nothing that may only follow from it.
pub(crate) fn more(loaded: &Loaded, assembled: &Assembled) -> Vec<Problem> {
    let mut found = Found::default();
    let documents = assembled.documents.problems();
    documents.for_each(|problem| found.add(problem));
    // What none of these declares, policies may still be right to mention: it may stand where nobody could read.
    let all_declared = loaded.all_read(&["RequestAuthentication", "RequestValidation"]);
    for service in &assembled.inbound {
        let mesh = assembled.mesh.state();
        let problems = match all_declared {
            true => ServicePolicy::compile(service, mesh)
                .err()
                .unwrap_or_default(),
            false => ServicePolicy::problems_of_form(service, mesh),
        };
        problems.iter().for_each(|problem| found.add(problem));
    }
    let told: HashSet<_> = loaded.report.problems().iter().map(place).collect();
    let problems = found.0.values();
    let problems = problems.map(|problem| placed(&loaded.resources, problem));
    problems
        .filter(|problem| !told.contains(&place(problem)))
        .collect()
}

fn place(problem: &Problem) -> (String, u32, u32) {
    (problem.file.clone(), problem.line, problem.column)
}

/// Of several problems at one place the first: Cedar says the same of every action that a policy is for, and a document
/// that is no Cedar at all is in every service that it reaches.
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
