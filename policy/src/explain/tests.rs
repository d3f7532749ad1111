use jiff::Timestamp;

use super::*;
use crate::{
    decision::Decision,
    principal::Principal,
    tests::{ServicePolicy, alice, mesh, service},
};

const POLICIES: &str = r#"
@id("own") permit (principal == Workload::"edge/gateway", action in Action::"read", resource)
when { context has user && context has route && context.params has user && context.params.user == context.user.subject };
@id("tenant") permit (principal in Namespace::"shop", action == Action::"GET", resource)
when { context.headers has "x-tenant" } unless { context.headers["x-tenant"] == "evil" || context.path like "/private/*" };
@id("office") @reason("Closed at night.") forbid (principal, action in Action::"write", resource)
unless { context.circumstances.now.toTime() < duration("18h") };
@id("sum") permit (principal, action == Action::"PUT", resource) when { context.port * 9223372036854775807 > 5 };
"#;

/// Decides, records and explains, and checks that decision and explanation agree.
fn explained(
    from: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    at: &str,
) -> Explanation {
    let service = service(POLICIES);
    let policy = ServicePolicy::compile(&service, &mesh()).unwrap();
    let principal = Principal::Workload(
        format!("spiffe://demo.test/ns/{}", from.replace('/', "/sa/"))
            .parse()
            .unwrap(),
    );
    let peer = policy.peer(&principal);
    let user = alice();
    let headers = headers.to_vec();
    let route = policy.route(method, path);
    let facts = RequestFacts {
        kind: RequestKind::Http(HttpFacts {
            host: "orders.shop",
            method,
            path,
            query: Some("secret=1"),
            route: &route,
            headers: &headers,
        }),
        source_ip: "10.0.0.7".parse().unwrap(),
        client_ip: "10.0.0.7".parse().unwrap(),
        port: 8080,
        now: at.parse::<Timestamp>().unwrap(),
        user: Some(&user),
        tls: Some(TlsFacts {
            version: "TLSv1.3",
            cipher: "TLS13_AES_128_GCM_SHA256",
            dns_names: &[],
        }),
    };
    let decision = policy.decide(&policy.candidates(&peer), &peer, &facts);
    let recorded = policy.record(&peer, &facts, &decision);
    // Serialised, as the proxy sends it.
    let text = serde_json::to_string(&recorded).unwrap();
    assert!(!text.contains("secret"), "{text}");
    let recorded: RecordedFacts = serde_json::from_str(&text).unwrap();
    let explanation = explain(&service, &mesh(), &recorded).unwrap();
    assert_eq!(explanation.allowed, matches!(decision, Decision::Permit(_)));
    if let Some(policy) = decision.policy() {
        assert!(explanation.determining.contains(policy));
    }
    explanation
}

fn outcome<'a>(explanation: &'a Explanation, id: &str) -> &'a PolicyOutcome {
    &explanation
        .policies
        .iter()
        .find(|one| one.policy.name.id == id)
        .unwrap()
        .outcome
}

const NOON: &str = "2026-11-23T12:00:00Z";

#[test]
fn an_allowed_request_names_the_policy_that_holds() {
    let explanation = explained("edge/gateway", "GET", "/users/alice/orders/7", &[], NOON);
    assert_eq!(explanation.summary, "allowed: `shop/orders#own` permits it");
    assert_eq!(outcome(&explanation, "own"), &PolicyOutcome::Holds);
    // Forbids come first.
    assert_eq!(explanation.policies[0].policy.name.id, "office");
}

#[test]
fn a_denied_request_names_the_first_false_condition_and_its_values() {
    let explanation = explained("edge/gateway", "GET", "/users/bob/orders/7", &[], NOON);
    assert_eq!(explanation.summary, "denied: no policy permits it");
    assert_eq!(
        outcome(&explanation, "own"),
        &PolicyOutcome::ConditionFalse {
            condition: "context.params.user == context.user.subject".to_owned(),
            saw: Some(
                "context.params.user is \"bob\", context.user.subject is \"alice\"".to_owned()
            ),
        }
    );
    let explanation = explained("edge/gateway", "GET", "/elsewhere", &[], NOON);
    assert_eq!(
        outcome(&explanation, "own"),
        &PolicyOutcome::ConditionFalse {
            condition: "context has route".to_owned(),
            saw: Some("context.route is absent".to_owned()),
        }
    );
}

#[test]
fn an_unless_clause_is_explained_by_the_part_that_holds() {
    let explanation = explained("shop/web", "GET", "/private/x", &[("x-tenant", "a")], NOON);
    assert_eq!(
        outcome(&explanation, "tenant"),
        &PolicyOutcome::ConditionFalse {
            condition: "!(context.path like \"/private/*\")".to_owned(),
            saw: Some("context.path is \"/private/x\"".to_owned()),
        }
    );
    // One value of a repeated header is enough to deny.
    let explanation = explained(
        "shop/web",
        "GET",
        "/",
        &[("x-tenant", "a"), ("x-tenant", "evil")],
        NOON,
    );
    let PolicyOutcome::ConditionFalse { saw: Some(saw), .. } = outcome(&explanation, "tenant")
    else {
        panic!()
    };
    assert_eq!(saw, "context.headers[\"x-tenant\"] is \"evil\"");
}

#[test]
fn an_out_of_scope_policy_names_the_part_of_its_scope() {
    let explanation = explained("ops/console", "GET", "/", &[], NOON);
    assert_eq!(
        outcome(&explanation, "own"),
        &PolicyOutcome::OutOfScope {
            part: "principal".to_owned(),
            wants: "principal == Workload::\"edge/gateway\"".to_owned(),
            saw: "Workload::\"ops/console\"".to_owned(),
        }
    );
    let PolicyOutcome::OutOfScope { part, saw, .. } = outcome(&explanation, "office") else {
        panic!()
    };
    assert_eq!((part.as_str(), saw.as_str()), ("action", "Action::\"GET\""));
}

#[test]
fn a_forbid_and_an_error_are_explained() {
    let explanation = explained("shop/web", "PUT", "/", &[], "2026-11-23T20:00:00Z");
    assert_eq!(
        explanation.summary,
        "denied: `shop/orders#office` forbids it"
    );
    assert!(
        matches!(outcome(&explanation, "sum"), PolicyOutcome::Error { error } if error.contains("overflow"))
    );
}

#[test]
fn invalid_facts_are_the_explanation() {
    let explanation = explained("shop/web", "GET", "/", &[("x-tenant", "caf\u{e9}")], NOON);
    assert_eq!(
        explanation.summary,
        "denied: the header `x-tenant` is not printable ASCII"
    );
}
