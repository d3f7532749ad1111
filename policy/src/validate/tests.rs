use merlon_config::{resource::RequestValidationSpec, snapshot::Attached};
use serde_json::{Value, json};

use super::*;

fn documents(specs: &[Value]) -> Vec<Attached<RequestValidationSpec>> {
    specs
        .iter()
        .enumerate()
        .map(|(number, spec)| Attached {
            from: format!("shop/shape-{number}").parse().unwrap(),
            spec: serde_json::from_value(spec.clone()).unwrap(),
        })
        .collect()
}

fn router(specs: &[Value]) -> Router {
    Router::new(&documents(specs)).unwrap_or_else(|problems| panic!("{}", problems[0]))
}

fn orders() -> Value {
    json!({
        "limits": { "uri": "100", "headers": "1KiB", "body": "64KiB" },
        "routes": [
            { "path": "/orders/{id}", "methods": ["GET", "DELETE"] },
            { "path": "/orders/{id}", "methods": ["PUT"], "contentTypes": ["application/json", "text/plain"] },
            { "path": "/orders/new", "methods": ["GET"] },
            { "path": "/orders", "methods": ["POST"], "maxBody": "1KiB", "body": {
                "type": "object",
                "required": ["item"],
                "properties": { "item": { "type": "string" }, "lines": { "type": "array", "items": { "type": "integer" } } },
                "additionalProperties": false,
            } },
            { "path": "/big", "maxBody": "1MiB" },
        ],
        "unknownRoutes": "refuse",
    })
}

const HEAD: HeadFacts<'static> = HeadFacts {
    method: "GET",
    uri_bytes: 10,
    header_bytes: 100,
    content_type: None,
    encoded: false,
    content_length: None,
    has_body: false,
};

fn head(router: &Router, path: &str, head: &HeadFacts<'_>) -> Result<(), Violation> {
    check_head(router, head, &router.find(head.method, path))
}

#[test]
fn each_size_limit_has_its_own_status() {
    let router = router(&[orders()]);
    let status = |facts: &HeadFacts<'_>| {
        head(&router, "/orders/1", facts).map_err(|violation| (violation.status, violation.reason))
    };
    status(&HEAD).unwrap();
    let limit = |status| Err((status, "http.limit".to_owned()));
    assert_eq!(
        status(&HeadFacts {
            uri_bytes: 101,
            ..HEAD
        }),
        limit(414)
    );
    assert_eq!(
        status(&HeadFacts {
            header_bytes: 1_025,
            ..HEAD
        }),
        limit(431)
    );
    let body = HeadFacts {
        method: "PUT",
        has_body: true,
        content_type: Some("text/plain"),
        content_length: Some(65_537),
        ..HEAD
    };
    assert_eq!(status(&body), limit(413));
    status(&HeadFacts {
        content_length: Some(65_536),
        ..body
    })
    .unwrap();
}

#[test]
fn a_wrong_method_gets_the_allowed_methods() {
    let router = router(&[orders()]);
    let violation = head(
        &router,
        "/orders/1",
        &HeadFacts {
            method: "POST",
            ..HEAD
        },
    )
    .unwrap_err();
    assert_eq!(
        (violation.status, violation.reason.as_str()),
        (405, "http.method")
    );
    assert_eq!(violation.allow, ["DELETE", "GET", "PUT"]);
    // The more specific template decides, even if a wider one accepts the method.
    let violation = head(
        &router,
        "/orders/new",
        &HeadFacts {
            method: "DELETE",
            ..HEAD
        },
    )
    .unwrap_err();
    assert_eq!(violation.allow, ["GET"]);
}

#[test]
fn an_unknown_route_is_rejected_only_if_the_document_requires_it() {
    assert_eq!(
        head(&router(&[orders()]), "/nowhere", &HEAD)
            .unwrap_err()
            .status,
        404
    );
    let mut lenient = orders();
    lenient["unknownRoutes"] = json!("allow");
    head(&router(&[lenient]), "/nowhere", &HEAD).unwrap();
    head(&router(&[]), "/nowhere", &HEAD).unwrap();
}

#[test]
fn the_media_type_is_compared_without_its_parameters() {
    let router = router(&[orders()]);
    let put = |content_type| {
        let facts = HeadFacts {
            method: "PUT",
            has_body: true,
            content_type,
            ..HEAD
        };
        head(&router, "/orders/1", &facts).map_err(|violation| violation.status)
    };
    put(Some("application/json")).unwrap();
    put(Some("Text/Plain; charset=utf-8")).unwrap();
    assert_eq!(put(Some("application/xml")), Err(415));
    assert_eq!(put(Some("application/jsonp")), Err(415));
    assert_eq!(put(None), Err(415));
}

#[test]
fn a_body_with_a_schema_must_be_json() {
    let router = router(&[orders()]);
    let route = router.find("POST", "/orders");
    for content_type in [
        None,
        Some("text/json"),
        Some("application/json; charset=utf-16"),
    ] {
        let facts = HeadFacts {
            method: "POST",
            has_body: true,
            content_type,
            ..HEAD
        };
        assert_eq!(
            check_head(&router, &facts, &route).unwrap_err().status,
            415,
            "{content_type:?}"
        );
    }
    let rule = BodyRule::new(&router, &route).unwrap();
    assert_eq!(rule.max_bytes(), 1_024);
    let check = |body: &str| {
        rule.check(body.as_bytes(), Some("application/problem+json"))
            .map_err(|violation| (violation.status, violation.place.unwrap_or_default()))
    };
    check(r#"{"item": "book", "lines": [1, 2]}"#).unwrap();
    assert_eq!(check(r#"{"item": 7}"#), Err((400, "/item".into())));
    assert_eq!(
        check(r#"{"item": "book", "lines": [1, "x"]}"#),
        Err((400, "/lines/1".into()))
    );
    assert_eq!(check(r#"{"lines": []}"#), Err((400, String::new())));
    assert_eq!(
        check(r#"{"item": "a", "item": "b"}"#),
        Err((400, "/item".into()))
    );
    assert_eq!(check(r#"{"item": "a"} x"#).unwrap_err().0, 400);
    assert_eq!(
        check(&format!("{{\"item\": \"{}\"}}", "a".repeat(1_024)))
            .unwrap_err()
            .0,
        413
    );
}

#[test]
fn a_rejected_body_is_not_quoted() {
    let router = router(&[orders()]);
    let route = router.find("POST", "/orders");
    let rule = BodyRule::new(&router, &route).unwrap();
    let violation = rule
        .check(
            br#"{"item": ["4111 1111 1111 1111"]}"#,
            Some("application/json"),
        )
        .unwrap_err();
    assert_eq!(violation.reason, "validate.body");
    assert!(!violation.to_string().contains("4111"), "{violation}");
}

#[test]
fn the_smallest_body_limit_applies() {
    let router = router(&[orders()]);
    let most = |method, path| max_body(&router, &router.find(method, path));
    assert_eq!(most("POST", "/orders"), Some(1_024));
    assert_eq!(most("POST", "/big"), Some(65_536));
    assert_eq!(most("GET", "/nowhere"), Some(65_536));
}

#[test]
fn every_document_applies_and_the_most_specific_template_is_the_route() {
    let wide = json!({ "routes": [{ "path": "/{rest*}", "methods": ["GET", "POST"], "body": { "required": ["tenant"] } }] });
    for specs in [[orders(), wide.clone()], [wide, orders()]] {
        let router = router(&specs);
        let route = router.find("POST", "/orders");
        assert_eq!(router.template(&route), Some("/orders"));
        let rule = BodyRule::new(&router, &route).unwrap();
        assert!(
            rule.check(br#"{"item": "a"}"#, Some("application/json"))
                .is_err()
        );
        let route = router.find("PUT", "/orders/7");
        assert_eq!(router.param(&route, "id", "/orders/7"), Some("7"));
        let put = HeadFacts {
            method: "PUT",
            ..HEAD
        };
        assert_eq!(
            check_head(&router, &put, &route).unwrap_err().allow,
            ["GET", "POST"]
        );
    }
}

#[test]
fn a_route_of_another_service_is_ignored() {
    let (one, other) = (router(&[orders()]), router(&[orders()]));
    let route = one.find("GET", "/orders/7");
    assert_eq!(one.template(&route), Some("/orders/{id}"));
    assert_eq!(other.template(&route), None);
    assert_eq!(other.param(&route, "id", "/orders/7"), None);
}

#[test]
fn an_invalid_document_is_rejected_with_the_field() {
    let rejected = |routes: Value| {
        let problems = Router::new(&documents(&[json!({ "routes": routes })])).unwrap_err();
        (
            problems[0].field.clone().unwrap_or_default(),
            problems[0].message.clone(),
        )
    };
    let (field, message) = rejected(json!([{ "path": "/a" }, { "path": "orders" }]));
    assert_eq!(field, "spec.routes[1].path");
    assert!(message.contains("does not begin with `/`"));
    let (field, message) = rejected(json!([{ "path": "/a", "body": { "type": "strin" } }]));
    assert_eq!(field, "spec.routes[0].body");
    assert!(
        message.contains("JSON Schema is not valid at `/type`"),
        "{message}"
    );
    for schema in [
        json!({ "$ref": "https://example.com/x.json" }),
        json!({ "$ref": "file:///etc/passwd" }),
    ] {
        assert_eq!(
            rejected(json!([{ "path": "/a", "body": schema }])).0,
            "spec.routes[0].body"
        );
    }
    let (field, message) =
        rejected(json!([{ "path": "/a", "methods": ["GET"] }, { "path": "/a" }]));
    assert_eq!(
        (field.as_str(), message.as_str()),
        (
            "spec.routes[1].methods",
            "two rules for `/a` have a method in common"
        )
    );
    // References within the schema are allowed.
    router(&[
        json!({ "routes": [{ "path": "/a", "body": { "$ref": "#/$defs/x", "$defs": { "x": { "type": "object" } } } }] }),
    ]);
}

fn body_rule(schema: &Value) -> BodyRule {
    let router =
        router(&[json!({ "routes": [{ "path": "/", "maxBody": "8MiB", "body": schema }] })]);
    BodyRule::new(&router, &router.find("POST", "/")).unwrap()
}

/// A schema of trees with alternatives: each level of a wrong tree is compared with both.
fn alternatives() -> Value {
    json!({
        "$ref": "#/$defs/node",
        "$defs": { "node": { "anyOf": [
            { "type": "null" },
            { "type": "object", "properties": { "a": { "$ref": "#/$defs/node" } }, "required": ["a"] },
            { "type": "object", "properties": { "a": { "$ref": "#/$defs/node" }, "b": { "type": "null" } }, "required": ["a"] },
        ] } },
    })
}

#[test]
fn a_wrong_body_for_a_recursive_schema_with_alternatives_is_refused_within_the_bound() {
    let rule = body_rule(&alternatives());
    let check = |depth: usize, end: &str| {
        let body = format!("{}{end}{}", "{\"a\":".repeat(depth), "}".repeat(depth));
        rule.check(body.as_bytes(), Some("application/json"))
    };
    check(60, "null").unwrap();
    // Without a bound, this takes 2^60 comparisons.
    let violation = check(60, "7").unwrap_err();
    assert_eq!(
        (violation.status, &*violation.reason),
        (400, "validate.body")
    );
    check(3, "7").unwrap_err();
}

#[test]
fn a_body_that_needs_more_visits_than_allowed_has_no_result() {
    let rule = body_rule(&json!({ "items": { "type": "integer", "minimum": 1 } }));
    let body = format!("[{}]", vec!["7"; 1_000].join(","));
    let within = |visits| rule.check_within(visits, body.as_bytes(), Some("application/json"));
    assert_eq!(within(100), Err(TooCostly));
    assert_eq!(within(100_000), Ok(Ok(())));
    // A small body never gets there.
    let long = format!("[{}]", vec!["7"; 1_000_000].join(","));
    let violation = rule
        .check(long.as_bytes(), Some("application/json"))
        .unwrap_err();
    assert!(
        violation.detail.contains("visited more than 1000000 times"),
        "{violation}"
    );
}

#[test]
fn long_strings_count_by_their_length() {
    let rule = body_rule(&json!({ "properties": { "a": { "pattern": "^x*$", "minLength": 1 } } }));
    let body = format!("{{\"a\": \"{}\"}}", "x".repeat(1 << 20));
    let within = |visits| rule.check_within(visits, body.as_bytes(), Some("application/json"));
    assert_eq!(within(10_000), Err(TooCostly));
    assert_eq!(within(100_000), Ok(Ok(())));
}

#[test]
fn the_violation_of_a_large_body_that_needs_a_long_search_has_no_place() {
    let rule = body_rule(&json!({ "items": { "type": "integer" } }));
    let check = |items: usize| {
        let body = format!("[{}\"x\"]", "7,".repeat(items));
        rule.check(body.as_bytes(), Some("application/json"))
            .unwrap_err()
    };
    assert_eq!(check(3).place.as_deref(), Some("/3"));
    let far = check(100_000);
    assert_eq!((far.status, far.place.as_deref()), (400, Some("")));
    assert_eq!(far.detail, "the body does not match its schema");
}

#[test]
fn the_size_of_a_schema_and_of_its_patterns_is_bounded() {
    let problem = |schema: Value| {
        let specs = [json!({ "routes": [{ "path": "/", "body": schema }] })];
        let problems = Router::new(&documents(&specs)).err().unwrap_or_default();
        problems
            .first()
            .map(|problem| problem.message.clone())
            .unwrap_or_default()
    };
    let pattern = |bytes: usize| json!({ "pattern": "x".repeat(bytes) });
    assert_eq!(problem(pattern(4 << 10)), "");
    assert!(problem(pattern((4 << 10) + 1)).contains("has 4097 bytes; the maximum is 4096"));
    let name = "y".repeat(5_000);
    assert!(
        problem(json!({ "items": { "patternProperties": { name: true } } }))
            .contains("has 5000 bytes")
    );
    let many = |count: usize| json!({ "allOf": vec![pattern(1); count] });
    assert_eq!(problem(many(128)), "");
    assert!(problem(many(129)).contains("has 129 patterns; the maximum is 128"));
    // A short pattern that is large when it is compiled.
    assert!(problem(json!({ "pattern": r"(\pL{200}){200}" })).contains("is not valid"));
    assert!(
        problem(json!({ "description": "x".repeat(300 << 10) }))
            .contains("the maximum is 262144 (256KiB)")
    );
}

#[test]
fn the_largest_schema_for_the_deepest_body_needs_no_more_stack_than_there_is() {
    // 256 schemas apply to each of 64 levels.
    let link = |number: usize| {
        (
            format!("d{number}"),
            json!({ "allOf": [{ "$ref": format!("#/$defs/d{}", number + 1) }] }),
        )
    };
    let mut definitions: serde_json::Map<_, _> = (0..127).map(link).collect();
    let last = json!({ "properties": { "a": { "$ref": "#/$defs/d0" } }, "items": { "$ref": "#/$defs/d0" } });
    definitions.insert("d127".to_owned(), last);
    let schema = json!({ "$ref": "#/$defs/d0", "$defs": definitions });
    let rule = crate::stack::half(|| body_rule(&schema));
    let check = |body: String| {
        let check = || {
            rule.check(body.as_bytes(), Some("application/json"))
                .map_err(|violation| violation.detail)
        };
        crate::stack::of(crate::stack::EVALUATION, check)
    };
    // Within the stack of a worker it is valid, or it is refused; it never overflows.
    for body in [
        format!("{}1{}", "{\"a\":".repeat(63), "}".repeat(63)),
        format!("{}1{}", "[".repeat(63), "]".repeat(63)),
    ] {
        if let Err(detail) = check(body) {
            assert!(detail.contains("visited more than"), "{detail}");
        }
    }
    assert_eq!(check("{\"a\": [1]}".to_owned()), Ok(()));
}
