//! Turns a panic of compilation into a problem of the document that causes it, so that no document can end a process.

use merlon_config::{
    contain::{HINT, contain},
    name::ServiceName,
    snapshot::InboundService,
};

use crate::problem::PolicyProblem;

type Problems = Vec<PolicyProblem>;

/// Runs `compile` on one document.
///
/// # Errors
/// Those of `compile`, or the panic.
pub(crate) fn document<T>(
    name: &ServiceName,
    origin: &str,
    compile: impl FnOnce() -> Result<T, Problems>,
) -> Result<T, Problems> {
    contain(compile).unwrap_or_else(|panic| Err(vec![problem(name, &panic).origin(origin)]))
}

/// Runs `compile` on all documents of a service. If it panics, the fewest first documents that make it panic are
/// searched for, and the last of them is blamed.
///
/// # Errors
/// Those of `compile`, or the panic.
pub(crate) fn service<T>(
    service: &InboundService,
    compile: impl Fn(&InboundService) -> Result<T, Problems>,
) -> Result<T, Problems> {
    contain(|| compile(service)).unwrap_or_else(|panic| {
        let panics = |number| contain(|| compile(&with_first(service, number))).is_err();
        let (mut without, mut with) = (0, documents(service));
        while without < with {
            let middle = without.midpoint(with);
            if panics(middle) {
                with = middle;
            } else {
                without = middle + 1;
            }
        }
        Err(vec![blamed(service, with, &panic)])
    })
}

fn documents(service: &InboundService) -> usize {
    service.policies.len() + service.authentication.len() + service.validation.len()
}

/// The service with its first documents: policies, then authentication, then validation.
fn with_first(service: &InboundService, number: usize) -> InboundService {
    let mut part = service.clone();
    let mut rest = number;
    let mut next = |length: usize| {
        let taken = length.min(rest);
        rest -= taken;
        taken
    };
    part.policies.truncate(next(service.policies.len()));
    part.authentication
        .truncate(next(service.authentication.len()));
    part.validation.truncate(next(service.validation.len()));
    part
}

/// The problem of the last of the first documents.
fn blamed(service: &InboundService, number: usize, panic: &str) -> PolicyProblem {
    let part = with_first(service, number);
    if let Some(last) = part.validation.last() {
        return problem(&last.from, panic).field("spec.routes");
    }
    if let Some(last) = part.authentication.last() {
        return problem(&last.from, panic).field("spec.issuers");
    }
    match part.policies.last() {
        Some(last) => problem(&last.name, panic).origin(&last.origin),
        None => problem(&service.name, panic),
    }
}

fn problem(name: &ServiceName, panic: &str) -> PolicyProblem {
    PolicyProblem::new(name, format!("compiling it panicked: {panic}")).hint(HINT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn orders(documents: usize) -> InboundService {
        let mut service: InboundService =
            serde_json::from_value(serde_json::json!({ "name": "shop/orders" })).unwrap();
        service.policies = (0..documents)
            .map(|number| merlon_config::snapshot::PolicyDocument {
                name: format!("shop/policy-{number}").parse().unwrap(),
                origin: format!("policy-{number}.yaml"),
                text: String::new(),
            })
            .collect();
        service
    }

    #[test]
    fn a_panic_is_a_problem_of_the_document_that_causes_it() {
        for culprit in 0..9 {
            let name = format!("shop/policy-{culprit}");
            let compile = |service: &InboundService| -> Result<(), Problems> {
                let there = service.policies.iter().any(|p| p.name.to_string() == name);
                assert!(!there, "too deep");
                Ok(())
            };
            let problems = service(&orders(9), compile).unwrap_err();
            assert_eq!(problems.len(), 1);
            assert_eq!(problems[0].document.to_string(), name);
            assert_eq!(problems[0].origin, format!("policy-{culprit}.yaml"));
            assert_eq!(problems[0].message, "compiling it panicked: too deep");
        }
    }

    #[test]
    fn a_panic_that_needs_two_documents_is_a_problem_of_the_second() {
        let compile = |service: &InboundService| -> Result<(), Problems> {
            assert!(service.policies.len() < 6, "too many");
            Ok(())
        };
        let problems = service(&orders(9), compile).unwrap_err();
        assert_eq!(problems[0].document.to_string(), "shop/policy-5");
    }

    #[test]
    fn a_panic_without_a_document_is_a_problem_of_the_service() {
        let compile = |_: &InboundService| -> Result<(), Problems> { panic!("always") };
        let problems = service(&orders(3), compile).unwrap_err();
        assert_eq!(problems[0].document.to_string(), "shop/orders");
    }

    #[test]
    fn the_problems_of_compilation_pass() {
        let name: ServiceName = "shop/orders".parse().unwrap();
        let wrong = || -> Result<(), Problems> { Err(vec![PolicyProblem::new(&name, "wrong")]) };
        assert_eq!(document(&name, "", wrong).unwrap_err()[0].message, "wrong");
        let panics = || -> Result<(), Problems> { panic!("at once") };
        let problems = document(&name, "orders.yaml", panics).unwrap_err();
        assert_eq!(problems[0].origin, "orders.yaml");
    }
}
