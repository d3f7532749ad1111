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
mod tests;
