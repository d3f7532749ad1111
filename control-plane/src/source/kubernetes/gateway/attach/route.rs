//! A route, and the listeners that accept it.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{ResourceExt as _, api::DynamicObject};
use merlon_config::resource::{HttpRouteSpec, ParentRef, Resource, Spec};
use serde_json::Value;

use super::{
    super::{
        api,
        report::{CONTROLLER, ConditionDraft, GatewayDetails, GatewayStatus, ParentStatus},
        route::{self, RouteContext},
    },
    GatewayObjects,
    gateway::OwnGateway,
    report, spec,
};
use crate::cluster::gateway_api::GROUP;

pub(super) fn attach_route(
    object: &DynamicObject,
    seen: &GatewayObjects,
    around: &RouteContext<'_>,
    gateways: &mut BTreeMap<(String, String), OwnGateway>,
) -> (Option<GatewayStatus>, Option<Resource>) {
    let namespace = object.namespace().unwrap_or_default();
    let Ok(written) = spec::<api::Route>(object) else {
        return (None, None);
    };
    let rules = route::rules(&namespace, &written.rules, around);
    let mut parents = Vec::new();
    let mut parent_refs = Vec::new();
    for value in &written.parent_refs {
        let Ok(parent) = serde_json::from_value::<api::Parent>(value.clone()) else {
            continue;
        };
        let kind = (
            parent.group.as_deref().unwrap_or(GROUP),
            parent.kind.as_deref().unwrap_or("Gateway"),
        );
        let of = parent
            .namespace
            .clone()
            .unwrap_or_else(|| namespace.clone());
        let Some(own) = gateways.get_mut(&(of.clone(), parent.name.clone())) else {
            continue;
        };
        if kind != (GROUP, "Gateway") {
            continue;
        }
        let (accepted, resolved) = match &rules {
            Ok((_, resolved)) => {
                let accepted = match choose(&namespace, &written.hostnames, &parent, own, seen) {
                    Ok(listeners) => {
                        for index in listeners {
                            let Some(listener) = own.listeners.get_mut(index) else {
                                continue;
                            };
                            listener.details.attached += 1;
                            if let Some(converted) = listener.converted.as_ref() {
                                parent_refs.push((
                                    of.clone(),
                                    parent.name.clone(),
                                    converted.name.clone(),
                                ));
                            }
                        }
                        ConditionDraft::positive("Accepted", "valid and in force")
                    }
                    Err(refused) => refused,
                };
                (accepted, resolved.clone())
            }
            Err(why) => {
                let resolved =
                    ConditionDraft::positive("ResolvedRefs", "references were not checked");
                (
                    ConditionDraft::negative("UnsupportedValue", why.clone()),
                    resolved,
                )
            }
        };
        parents.push(ParentStatus {
            parent: value.clone(),
            accepted,
            resolved,
        });
    }
    // A route that is no longer attached to Merlon's gateways gets a report, too, which removes the earlier status.
    let before = object
        .data
        .pointer("/status/parents")
        .and_then(Value::as_array);
    let reported =
        before.is_some_and(|all| all.iter().any(|one| one["controllerName"] == CONTROLLER));
    if parents.is_empty() && !reported {
        return (None, None);
    }
    let report = report("HTTPRoute", object, GatewayDetails::Route(parents));
    let resource = rules.ok().and_then(|(rules, _)| {
        let refs = parent_refs.into_iter().map(|(namespace, name, section)| {
            Some(ParentRef {
                name: name.parse().ok()?,
                namespace: Some(namespace.parse().ok()?),
                section_name: Some(section),
            })
        });
        let parent_refs: Vec<ParentRef> = refs.collect::<Option<_>>()?;
        (!parent_refs.is_empty()).then_some(())?;
        Some(Resource {
            namespace: namespace.parse().ok()?,
            name: object.name_any().parse().ok()?,
            labels: object.labels().clone(),
            created: object.creation_timestamp().map(|time| time.0.as_second()),
            origin: report.origin(),
            spec: Spec::HttpRoute(HttpRouteSpec {
                parent_refs,
                hostnames: written.hostnames,
                rules,
            }),
        })
    });
    (Some(report), resource)
}

/// The listeners that accept a route, by index.
fn choose(
    namespace: &str,
    hostnames: &[String],
    parent: &api::Parent,
    own: &OwnGateway,
    seen: &GatewayObjects,
) -> Result<Vec<usize>, ConditionDraft> {
    let matching = own.listeners.iter().enumerate().filter(|(_, listener)| {
        let section = parent.section_name.as_ref();
        section.is_none_or(|section| *section == listener.details.name)
            && parent.port.is_none_or(|port| port == listener.port)
    });
    let matching: Vec<_> = matching.collect();
    if matching.is_empty() {
        let message = "no listener of the Gateway matches `sectionName` and `port`";
        return Err(ConditionDraft::negative("NoMatchingParent", message));
    }
    let home = &own.report.namespace;
    let allowed = matching
        .into_iter()
        .filter(|(_, listener)| is_allowed(namespace, home, &listener.allowed, seen));
    let allowed: Vec<_> = allowed.collect();
    if allowed.is_empty() {
        let message = format!(
            "the Gateway's `allowedRoutes` does not allow routes of `{namespace}`; the default allows only those of `{home}`"
        );
        return Err(ConditionDraft::negative("NotAllowedByListeners", message));
    }
    let fitting = allowed
        .into_iter()
        .filter(|(_, listener)| meet(hostnames, listener.hostname.as_deref()));
    let fitting: Vec<usize> = fitting.map(|(index, _)| index).collect();
    if fitting.is_empty() {
        let message = "none of its `hostnames` matches the listener's";
        return Err(ConditionDraft::negative(
            "NoMatchingListenerHostname",
            message,
        ));
    }
    Ok(fitting)
}

fn is_allowed(
    namespace: &str,
    home: &str,
    allowed: &api::AllowedRoutes,
    seen: &GatewayObjects,
) -> bool {
    let from = allowed.namespaces.as_ref();
    match from.and_then(|from| from.from.as_deref()).unwrap_or("Same") {
        "All" => true,
        "Same" => namespace == home,
        "Selector" => {
            let selector = from.and_then(|from| from.selector.as_ref());
            let mut all = seen.namespaces.iter();
            let found = all.find(|one| one.name_any() == namespace);
            // A missing selector selects nothing.
            match (selector, found) {
                (Some(selector), Some(found)) => selects(selector, found.labels()),
                _ => false,
            }
        }
        _ => false,
    }
}

fn selects(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    let exact = selector.match_labels.iter().flatten();
    let expressions = selector.match_expressions.iter().flatten();
    exact
        .into_iter()
        .all(|(key, value)| labels.get(key) == Some(value))
        && expressions.into_iter().all(|one| {
            let values = one.values.as_deref().unwrap_or_default();
            let value = labels.get(&one.key);
            match one.operator.as_str() {
                "In" => value.is_some_and(|value| values.contains(value)),
                "NotIn" => value.is_none_or(|value| !values.contains(value)),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

/// Whether a route and a listener have a host in common.
fn meet(hostnames: &[String], listener: Option<&str>) -> bool {
    let Some(listener) = listener else {
        return true;
    };
    let within = |host: &str, pattern: &str| {
        host.eq_ignore_ascii_case(pattern)
            || pattern.strip_prefix('*').is_some_and(|suffix| {
                host.len() > suffix.len()
                    && host
                        .to_ascii_lowercase()
                        .ends_with(&suffix.to_ascii_lowercase())
            })
    };
    hostnames.is_empty()
        || hostnames
            .iter()
            .any(|host| within(host, listener) || within(listener, host))
}
