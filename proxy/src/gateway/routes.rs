//! Selects the route of a request by the precedence rules of Gateway API.

use http::HeaderMap;
use merlon_config::{
    name::ServiceName,
    resource::{BackendRef, GatewayListener, HttpRouteMatch, HttpRouteRule, PathMatchType},
    snapshot::{GatewayRoute, GatewayState},
};

/// The properties of a request that routes match on.
#[derive(Debug)]
pub(crate) struct RouteQuery<'a> {
    /// Lower case, without port.
    pub(crate) host: &'a str,
    pub(crate) method: &'a str,
    /// Normalised.
    pub(crate) path: &'a str,
    pub(crate) headers: &'a HeaderMap,
}

/// A matching rule.
#[derive(Debug)]
pub(crate) struct MatchedRule<'g> {
    route: &'g GatewayRoute,
    rule: &'g HttpRouteRule,
}

/// A Service's port.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Backend {
    pub(crate) service: ServiceName,
    pub(crate) port: u16,
}

/// The precedence of a match; the greatest wins. Host, then path, then method, then headers; of equal matches the
/// first rule of the first route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Precedence {
    exact_host: bool,
    host_length: usize,
    exact_path: bool,
    path_length: usize,
    method: bool,
    headers: usize,
}

/// The listener on `port` with the most specific matching host. Without a name, only a listener for every host matches.
pub(crate) fn listener<'g>(
    gateway: &'g GatewayState,
    port: Option<u16>,
    name: Option<&str>,
) -> Option<&'g GatewayListener> {
    let here = gateway.listeners.iter();
    let candidates =
        here.filter(|one| Some(one.port) == port)
            .filter_map(|one| match (&one.hostname, name) {
                (None, _) => Some(((false, 0), one)),
                (Some(pattern), Some(name)) => Some((match_host(pattern, name)?, one)),
                (Some(_), None) => None,
            });
    candidates
        .max_by_key(|(precedence, _)| *precedence)
        .map(|(_, one)| one)
}

/// The best matching rule of the routes that are attached to `listener`.
pub(crate) fn find<'g>(
    gateway: &'g GatewayState,
    listener: &GatewayListener,
    query: &RouteQuery<'_>,
) -> Option<MatchedRule<'g>> {
    let host = listener.hostname.as_deref();
    if host.is_some_and(|pattern| match_host(pattern, query.host).is_none()) {
        return None;
    }
    let mut best: Option<(Precedence, MatchedRule<'g>)> = None;
    for route in &gateway.routes {
        if !is_attached(route, gateway, listener) {
            continue;
        }
        let Some((exact_host, host_length)) = route_host(route, query.host) else {
            continue;
        };
        for rule in &route.spec.rules {
            let any = HttpRouteMatch::default();
            let matches = if rule.matches.is_empty() {
                std::slice::from_ref(&any)
            } else {
                &rule.matches
            };
            for one in matches {
                let Some(precedence) = match_request(one, query) else {
                    continue;
                };
                let precedence = Precedence {
                    exact_host,
                    host_length,
                    ..precedence
                };
                if best.as_ref().is_none_or(|(other, _)| precedence > *other) {
                    best = Some((precedence, MatchedRule { route, rule }));
                }
            }
        }
    }
    best.map(|(_, matched)| matched)
}

/// Whether one of the route's parents is this listener.
fn is_attached(route: &GatewayRoute, gateway: &GatewayState, listener: &GatewayListener) -> bool {
    route.spec.parent_refs.iter().any(|parent| {
        let namespace = parent.namespace.as_ref();
        parent.name == gateway.name.name
            && *namespace.unwrap_or(&route.name.namespace) == gateway.name.namespace
            && parent
                .section_name
                .as_ref()
                .is_none_or(|section| *section == listener.name)
    })
}

fn route_host(route: &GatewayRoute, host: &str) -> Option<(bool, usize)> {
    if route.spec.hostnames.is_empty() {
        return Some((false, 0));
    }
    route
        .spec
        .hostnames
        .iter()
        .filter_map(|pattern| match_host(pattern, host))
        .max()
}

/// Matches a host name, exactly or by `*.`, which stands for one or more labels.
fn match_host(pattern: &str, host: &str) -> Option<(bool, usize)> {
    match pattern.strip_prefix('*') {
        Some(suffix) => {
            let start = host.len().checked_sub(suffix.len())?;
            let matches = start > 0
                && host
                    .get(start..)
                    .is_some_and(|end| end.eq_ignore_ascii_case(suffix));
            matches.then_some((false, suffix.len()))
        }
        None => pattern
            .eq_ignore_ascii_case(host)
            .then_some((true, pattern.len())),
    }
}

fn match_request(one: &HttpRouteMatch, query: &RouteQuery<'_>) -> Option<Precedence> {
    let (exact_path, path_length) = match &one.path {
        None => (false, 1),
        Some(path) => match path.kind {
            PathMatchType::Exact => {
                (path.value == query.path).then_some((true, path.value.len()))?
            }
            PathMatchType::PathPrefix => {
                let prefix = path.value.strip_suffix('/').unwrap_or(&path.value);
                let rest = query.path.strip_prefix(prefix)?;
                // Prefixes match whole segments: `/a` is not a prefix of `/ab`.
                let matches = rest.is_empty() || rest.starts_with('/');
                // `/a/` is the same prefix as `/a`, with the same precedence.
                matches.then_some((false, prefix.len().max(1)))?
            }
        },
    };
    if one
        .method
        .as_deref()
        .is_some_and(|method| method != query.method)
    {
        return None;
    }
    let matches = one.headers.iter().all(|wanted| {
        let mut values = query.headers.get_all(wanted.name.as_str()).iter();
        // Several values are ambiguous, so they do not match.
        values
            .next()
            .is_some_and(|value| value.as_bytes() == wanted.value.as_bytes())
            && values.next().is_none()
    });
    matches.then_some(Precedence {
        exact_host: false,
        host_length: 0,
        exact_path,
        path_length,
        method: one.method.is_some(),
        headers: one.headers.len(),
    })
}

impl MatchedRule<'_> {
    /// Selects one of the rule's backends by weight; `random` decides. `None` when the rule has no backend.
    pub(crate) fn backend(&self, random: u64) -> Option<Backend> {
        let total: u64 = self
            .rule
            .backend_refs
            .iter()
            .map(|one| u64::from(one.weight))
            .sum();
        let mut left = random.checked_rem(total)?;
        let chosen = self.rule.backend_refs.iter().find(|one| {
            let weight = u64::from(one.weight);
            let here = left < weight;
            left = left.saturating_sub(weight);
            here
        })?;
        Some(self.resolve(chosen))
    }

    fn resolve(&self, backend: &BackendRef) -> Backend {
        let namespace = backend
            .namespace
            .clone()
            .unwrap_or_else(|| self.route.name.namespace.clone());
        Backend {
            service: ServiceName {
                namespace,
                name: backend.name.clone(),
            },
            port: backend.port,
        }
    }
}

#[cfg(test)]
mod tests {
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
        let path = |kind: &str, value: &str| serde_json::json!([{ "path": { "type": kind, "value": value } }]);
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
}
