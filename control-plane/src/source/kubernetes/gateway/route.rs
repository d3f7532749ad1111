//! Converts the rules of an `HTTPRoute`, and refuses what Merlon does not support.

use std::collections::BTreeSet;

use merlon_config::resource::{BackendRef, HttpRouteMatch, HttpRouteRule};
use serde_json::{Map, Value};

use super::{
    api::{Grant, GrantFrom, GrantTo, Reference},
    report::ConditionDraft,
};
use crate::cluster::gateway_api::GROUP;

/// The objects that a route may reference.
pub(super) struct RouteContext<'a> {
    pub(super) grants: &'a [(String, Grant)],
    /// Services with their ports, as `namespace/name`.
    pub(super) services: &'a BTreeSet<(String, u16)>,
    pub(super) names: &'a BTreeSet<String>,
}

/// The name of a backend in the route's own namespace that stands for an invalid one. Its share of the requests is
/// answered with 500, as Gateway API requires, and not distributed to the other backends.
const NOWHERE: &str = "merlon-leads-nowhere";

/// The rules of a route in `namespace`, and whether all references are resolved.
///
/// # Errors
/// An unsupported setting, with its field.
pub(super) fn rules(
    namespace: &str,
    rules: &[Map<String, Value>],
    around: &RouteContext<'_>,
) -> Result<(Vec<HttpRouteRule>, ConditionDraft), String> {
    let mut resolved = ConditionDraft::positive("ResolvedRefs", "all references are resolved");
    let rules = rules.iter().enumerate().map(|(index, rule)| {
        let field = format!("spec.rules[{index}]");
        for known in rule.keys() {
            if !["name", "matches", "backendRefs"].contains(&known.as_str()) && is_set(rule, known)
            {
                return Err(format!("{field}.{known}: not supported; remove it"));
            }
        }
        let matches = list(rule, "matches").enumerate().map(|(index, one)| {
            let field = format!("{field}.matches[{index}]");
            route_match(one.clone()).map_err(|why| format!("{field}: {why}"))
        });
        let matches: Vec<HttpRouteMatch> = matches.collect::<Result<_, String>>()?;
        let backends = list(rule, "backendRefs").enumerate().map(|(index, one)| {
            let field = format!("{field}.backendRefs[{index}]");
            backend(namespace, &field, one, around, &mut resolved)
        });
        let backend_refs = backends.collect::<Result<_, String>>()?;
        Ok(HttpRouteRule {
            matches,
            backend_refs,
        })
    });
    Ok((rules.collect::<Result<_, String>>()?, resolved))
}

/// Whether a field has a value.
fn is_set(map: &Map<String, Value>, field: &str) -> bool {
    match map.get(field) {
        None | Some(Value::Null) => false,
        Some(Value::Array(list)) => !list.is_empty(),
        Some(_) => true,
    }
}

fn list<'a>(map: &'a Map<String, Value>, field: &str) -> impl Iterator<Item = &'a Value> {
    let list = map.get(field).and_then(Value::as_array);
    list.into_iter().flatten()
}

/// The type itself refuses unknown fields.
fn route_match(mut one: Value) -> Result<HttpRouteMatch, String> {
    let headers = one.get_mut("headers").and_then(Value::as_array_mut);
    for header in headers.into_iter().flatten() {
        let Some(header) = header.as_object_mut() else {
            continue;
        };
        match header.remove("type") {
            None => {}
            Some(kind) if kind == "Exact" => {}
            Some(kind) => {
                return Err(format!(
                    "headers can only be matched by `Exact`, not by {kind}"
                ));
            }
        }
    }
    if let Some(one) = one.as_object_mut()
        && !is_set(one, "queryParams")
    {
        one.remove("queryParams");
    }
    serde_json::from_value(one).map_err(|error| error.to_string())
}

fn backend(
    namespace: &str,
    field: &str,
    one: &Value,
    around: &RouteContext<'_>,
    resolved: &mut ConditionDraft,
) -> Result<BackendRef, String> {
    let one: Reference =
        serde_json::from_value(one.clone()).map_err(|error| format!("{field}: {error}"))?;
    if !one.filters.is_empty() {
        return Err(format!("{field}.filters: not supported; remove it"));
    }
    let wanted = one.namespace.as_deref().unwrap_or(namespace);
    let group = one.group.as_deref().unwrap_or_default();
    let kind = one.kind.as_deref().unwrap_or("Service");
    let full = format!("{wanted}/{}", one.name);
    let wrong = if (group, kind) != ("", "Service") {
        let message = format!("{field}: a backend must be a Service, not a `{group}/{kind}`");
        Some(ConditionDraft::negative("InvalidKind", message))
    } else if wanted != namespace && !granted(namespace, wanted, &one.name, around.grants) {
        let message = format!(
            "{field}: no ReferenceGrant in `{wanted}` allows HTTPRoutes of `{namespace}` to reference its Services"
        );
        Some(ConditionDraft::negative("RefNotPermitted", message))
    } else if !around.names.contains(&full) {
        let message = format!("{field}: there is no Service `{full}`");
        Some(ConditionDraft::negative("BackendNotFound", message))
    } else if let Some(port) = one.port
        && !around.services.contains(&(full.clone(), port))
    {
        let message = format!("{field}: the Service `{full}` has no port {port}");
        Some(ConditionDraft::negative("BackendNotFound", message))
    } else {
        None
    };
    let nowhere = wrong.is_some();
    if let Some(wrong) = wrong {
        *resolved = wrong;
    }
    let invalid = |text: &str, what: &str| format!("{field}.{what}: `{text}` is not a valid name");
    let target = (!nowhere).then_some(wanted);
    let name = if nowhere { NOWHERE } else { one.name.as_str() };
    Ok(BackendRef {
        name: name.parse().map_err(|_| invalid(name, "name"))?,
        namespace: target
            .map(|namespace| {
                namespace
                    .parse()
                    .map_err(|_| invalid(namespace, "namespace"))
            })
            .transpose()?,
        port: match one.port {
            Some(port) => port,
            None if nowhere => 1,
            None => return Err(format!("{field}.port: required for a Service")),
        },
        weight: one.weight.unwrap_or(1),
    })
}

fn granted(from: &str, to: &str, name: &str, grants: &[(String, Grant)]) -> bool {
    let from_fits =
        |one: &GrantFrom| one.group == GROUP && one.kind == "HTTPRoute" && one.namespace == from;
    let to_fits = |one: &GrantTo| {
        one.group.is_empty()
            && one.kind == "Service"
            && one.name.as_deref().is_none_or(|wanted| wanted == name)
    };
    let mut here = grants.iter().filter(|(namespace, _)| namespace == to);
    here.any(|(_, grant)| grant.from.iter().any(from_fits) && grant.to.iter().any(to_fits))
}
