use super::*;

fn gateway(routes: &serde_json::Value) -> GatewayState {
    serde_json::from_value(
        serde_json::json!({ "name": "edge/main", "routes": routes, "listeners": [
            { "name": "http", "port": 80, "protocol": "HTTP" },
            { "name": "shop", "port": 80, "protocol": "HTTP", "hostname": "*.shop.example" },
            { "name": "www", "port": 80, "protocol": "HTTP", "hostname": "www.shop.example" },
        ] }),
    )
    .unwrap()
}

fn rule(matches: impl Into<serde_json::Value>, to: &str) -> serde_json::Value {
    serde_json::json!({ "matches": matches.into(), "backendRefs": [{ "name": to, "port": 80 }] })
}

fn route(
    name: &str,
    hostnames: &[&str],
    rules: impl IntoIterator<Item = serde_json::Value>,
) -> serde_json::Value {
    serde_json::json!({ "name": name, "spec": {
        "parentRefs": [{ "name": "main", "namespace": "edge" }], "hostnames": hostnames, "rules": rules.into_iter().collect::<Vec<_>>() } })
}

fn to(gateway: &GatewayState, host: &str, method: &str, path: &str) -> Option<String> {
    let headers =
        HeaderMap::from_iter([(http::header::ACCEPT, http::HeaderValue::from_static("v2"))]);
    let query = RouteQuery {
        host,
        method,
        path,
        headers: &headers,
    };
    let listener = listener(gateway, Some(80), Some(host))?;
    let backend = find(gateway, listener, &query)?.backend(1)?;
    Some(backend.service.to_string())
}

#[test]
fn the_longest_path_wins_regardless_of_order() {
    let path =
        |kind: &str, value: &str| serde_json::json!([{ "path": { "type": kind, "value": value } }]);
    let gateway = gateway(&serde_json::json!([route(
        "shop/a",
        &[],
        vec![
            rule(path("PathPrefix", "/"), "all"),
            rule(path("PathPrefix", "/orders"), "orders"),
            rule(path("Exact", "/orders"), "exact"),
            rule(path("PathPrefix", "/orders/special/"), "special"),
        ]
    )]));
    assert_eq!(to(&gateway, "x", "GET", "/").as_deref(), Some("shop/all"));
    assert_eq!(
        to(&gateway, "x", "GET", "/orders").as_deref(),
        Some("shop/exact")
    );
    assert_eq!(
        to(&gateway, "x", "GET", "/orders/1").as_deref(),
        Some("shop/orders")
    );
    assert_eq!(
        to(&gateway, "x", "GET", "/ordersx").as_deref(),
        Some("shop/all")
    );
    assert_eq!(
        to(&gateway, "x", "GET", "/orders/special").as_deref(),
        Some("shop/special")
    );
}

#[test]
fn method_then_headers_break_a_tie() {
    let gateway = gateway(&serde_json::json!([route(
        "shop/a",
        &[],
        vec![
            rule(serde_json::json!([{}]), "plain"),
            rule(
                serde_json::json!([{ "headers": [{ "name": "Accept", "value": "v2" }] }]),
                "header"
            ),
            rule(serde_json::json!([{ "method": "POST" }]), "method"),
        ]
    )]));
    assert_eq!(
        to(&gateway, "x", "GET", "/").as_deref(),
        Some("shop/header")
    );
    assert_eq!(
        to(&gateway, "x", "POST", "/").as_deref(),
        Some("shop/method")
    );
}

#[test]
fn of_two_equal_matches_the_first_route_wins_with_and_without_a_trailing_slash() {
    let path =
        |value: &str| serde_json::json!([{ "path": { "type": "PathPrefix", "value": value } }]);
    for (first, second) in [("/a", "/a/"), ("/a/", "/a"), ("/", "/"), ("/a", "/a")] {
        let gateway = gateway(&serde_json::json!([
            route("shop/z", &[], [rule(path(first), "first")]),
            route("shop/a", &[], [rule(path(second), "second")]),
        ]));
        let to = to(&gateway, "x", "GET", "/a/b");
        assert_eq!(to.as_deref(), Some("shop/first"), "{first} {second}");
    }
    // A rule without matches has the prefix `/`.
    let gateway = gateway(&serde_json::json!([
        route("shop/z", &[], [rule(serde_json::json!([]), "first")]),
        route("shop/a", &[], [rule(path("/"), "second")]),
    ]));
    assert_eq!(to(&gateway, "x", "GET", "/").as_deref(), Some("shop/first"));
}

#[test]
fn an_exact_host_beats_a_wildcard_and_a_wildcard_does_not_match_the_bare_domain() {
    let any = || vec![rule(serde_json::json!([]), "any")];
    let one = || vec![rule(serde_json::json!([]), "one")];
    let gateway = gateway(&serde_json::json!([
        route("shop/a", &["*.example.com"], any()),
        route("shop/b", &["www.example.com"], one()),
    ]));
    assert_eq!(
        to(&gateway, "www.example.com", "GET", "/").as_deref(),
        Some("shop/one")
    );
    assert_eq!(
        to(&gateway, "a.b.example.com", "GET", "/").as_deref(),
        Some("shop/any")
    );
    assert_eq!(to(&gateway, "example.com", "GET", "/"), None);
}

#[test]
fn the_listener_for_the_host_serves_only_its_own_routes() {
    let to_section = |section: &str, to: &str| {
        serde_json::json!({ "name": format!("shop/{to}"), "spec": {
            "parentRefs": [{ "name": "main", "namespace": "edge", "sectionName": section }],
            "rules": [rule(serde_json::json!([]), to)] } })
    };
    let gateway = gateway(&serde_json::json!([
        to_section("shop", "any"),
        to_section("www", "one"),
    ]));
    let to = |host| to(&gateway, host, "GET", "/");
    assert_eq!(to("www.shop.example").as_deref(), Some("shop/one"));
    assert_eq!(to("api.shop.example").as_deref(), Some("shop/any"));
    assert_eq!(to("other.example"), None);
    assert!(listener(&gateway, Some(81), None).is_none());
    let anyone = listener(&gateway, Some(80), None).unwrap();
    assert_eq!(anyone.name.as_str(), "http");
}

#[test]
fn backends_are_selected_by_weight_and_never_with_weight_zero() {
    let gateway = gateway(&serde_json::json!([route(
        "shop/a",
        &[],
        vec![serde_json::json!({ "backendRefs": [
            { "name": "one", "port": 80, "weight": 3 }, { "name": "none", "port": 80, "weight": 0 },
            { "name": "two", "port": 80, "weight": 1, "namespace": "other" } ] })]
    )]));
    let headers = HeaderMap::new();
    let query = RouteQuery {
        host: "x",
        method: "GET",
        path: "/",
        headers: &headers,
    };
    let listener = listener(&gateway, Some(80), None).unwrap();
    let matched = find(&gateway, listener, &query).unwrap();
    let names: Vec<_> = (0..4)
        .map(|random| matched.backend(random).unwrap().service.to_string())
        .collect();
    assert_eq!(names, ["shop/one", "shop/one", "shop/one", "other/two"]);
}
