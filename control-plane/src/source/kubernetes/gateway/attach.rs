//! Converts a cluster's gateways, routes and certificates to Merlon's resources, with a status for each.
//!
//! Pure. A mistake does not affect other objects: only the invalid listener, route or reference is left out.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::{
    api::core::v1::{Namespace, Secret, Service},
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use kube::{ResourceExt as _, api::DynamicObject};
use merlon_certs::provider;
use merlon_compile::StateResource;
use merlon_config::{
    name::ServiceName,
    resource::{
        CertificateRef, GatewayListener, GatewaySpec, HttpRouteSpec, ListenerTls, ParentRef,
        Resource, Spec,
    },
    snapshot::CertificateState,
};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{
    api,
    report::{
        CONTROLLER, ConditionDraft, GatewayDetails, GatewayStatus, ListenerStatus, ParentStatus,
    },
    route::{self, RouteContext},
};
use crate::{cluster::gateway_api::GROUP, state::snapshot::Certificates};

/// The class in resource files. In a cluster, every class of Merlon's controller is served.
const CLASS: &str = "merlon";

/// The label of a Gateway's pods, which is also in the selector of its Services (GEP-1762).
pub(crate) const GATEWAY_LABEL: &str = "gateway.networking.k8s.io/gateway-name";

/// Ports that the proxy uses itself.
const OWN_PORTS: [u16; 1] = [7562];

/// The objects of the cluster.
#[derive(Debug, Default)]
pub(crate) struct GatewayObjects {
    /// The namespace for gateways: the control plane's own, whose Secrets it may read.
    pub(crate) namespace: String,
    pub(crate) classes: Vec<Arc<DynamicObject>>,
    pub(crate) gateways: Vec<Arc<DynamicObject>>,
    pub(crate) routes: Vec<Arc<DynamicObject>>,
    pub(crate) grants: Vec<Arc<DynamicObject>>,
    pub(crate) namespaces: Vec<Arc<Namespace>>,
    pub(crate) services: Vec<Arc<Service>>,
    pub(crate) secrets: Vec<Arc<Secret>>,
}

/// The result.
#[derive(Debug, Default)]
pub(crate) struct Attached {
    pub(crate) resources: Vec<Resource>,
    pub(crate) certificates: Certificates,
    pub(crate) reports: Vec<GatewayStatus>,
}

/// A Gateway of one of Merlon's classes, while routes are attached to it.
struct OwnGateway {
    report: GatewayStatus,
    accepted: ConditionDraft,
    listeners: Vec<OwnListener>,
}

struct OwnListener {
    details: ListenerStatus,
    port: u16,
    hostname: Option<String>,
    allowed: api::AllowedRoutes,
    /// The converted listener; `None` if it is not valid.
    converted: Option<GatewayListener>,
}

impl OwnListener {
    fn is_served(&self) -> bool {
        self.converted.is_some() && self.details.accepted.ok && self.details.resolved.ok
    }
}

/// Converts all objects.
pub(crate) fn attach(seen: &GatewayObjects) -> Attached {
    let mut all = Attached::default();
    let mut classes = BTreeSet::new();
    for object in &seen.classes {
        let ours =
            spec::<api::Class>(object).is_ok_and(|class| class.controller_name == CONTROLLER);
        if ours {
            classes.insert(object.name_any());
            all.reports
                .push(report("GatewayClass", object, GatewayDetails::Class));
        }
    }
    let mut gateways = BTreeMap::new();
    for object in &seen.gateways {
        let name = (object.namespace().unwrap_or_default(), object.name_any());
        let class = object.data.pointer("/spec/gatewayClassName");
        if class
            .and_then(Value::as_str)
            .is_some_and(|class| classes.contains(class))
        {
            gateways.insert(name, gateway(object, seen, &mut all.certificates));
        }
    }
    let grants: Vec<(String, api::Grant)> = seen
        .grants
        .iter()
        .filter_map(|object| Some((object.namespace()?, spec(object).ok()?)))
        .collect();
    let (names, services) = services(&seen.services);
    let around = RouteContext {
        grants: &grants,
        services: &services,
        names: &names,
    };
    for object in &seen.routes {
        let (report, resource) = attach_route(object, seen, &around, &mut gateways);
        all.reports.extend(report);
        all.resources.extend(resource);
    }
    for ((namespace, name), own) in gateways {
        let addresses = addresses(&namespace, &name, &seen.services);
        let served = own.listeners.iter().filter(|listener| listener.is_served());
        let served: Vec<GatewayListener> = served.filter_map(|one| one.converted.clone()).collect();
        let mut report = own.report;
        let accepted = match (own.accepted.ok, served.len(), own.listeners.len()) {
            (true, 0, _) => ConditionDraft::negative("ListenersNotValid", "no listener is valid"),
            (true, some, of) if some < of => ConditionDraft::positive(
                "ListenersNotValid",
                format!("{some} of {of} listeners are served; see the conditions of the others"),
            ),
            _ => own.accepted,
        };
        if accepted.ok
            && let (Ok(namespace), Ok(name)) = (namespace.parse(), name.parse())
        {
            all.resources.push(Resource {
                namespace,
                name,
                labels: BTreeMap::new(),
                created: None,
                origin: report.origin(),
                spec: Spec::Gateway(GatewaySpec {
                    gateway_class_name: CLASS.to_owned(),
                    service_account: None,
                    listeners: served,
                }),
            });
        }
        report.details = GatewayDetails::Gateway {
            accepted,
            listeners: own.listeners.into_iter().map(|one| one.details).collect(),
            addresses,
        };
        all.reports.push(report);
    }
    // Removes routes from Gateways that are not served.
    let served: BTreeSet<(String, String)> = all
        .resources
        .iter()
        .filter(|resource| matches!(resource.spec, Spec::Gateway(_)))
        .map(|resource| (resource.namespace.to_string(), resource.name.to_string()))
        .collect();
    all.resources.retain_mut(|resource| {
        let Spec::HttpRoute(route) = &mut resource.spec else {
            return true;
        };
        route.parent_refs.retain(|parent| {
            let namespace = parent.namespace.as_ref().map(ToString::to_string);
            served.contains(&(namespace.unwrap_or_default(), parent.name.to_string()))
        });
        !route.parent_refs.is_empty()
    });
    all
}

fn spec<T: DeserializeOwned>(object: &DynamicObject) -> Result<T, String> {
    let spec = object.data.get("spec").cloned().unwrap_or(Value::Null);
    serde_json::from_value(spec).map_err(|error| format!("spec: {error}"))
}

fn report(kind: &'static str, object: &DynamicObject, details: GatewayDetails) -> GatewayStatus {
    GatewayStatus {
        kind,
        namespace: object.namespace().unwrap_or_default(),
        name: object.name_any(),
        uid: object.uid().unwrap_or_default(),
        generation: object.metadata.generation.unwrap_or_default(),
        details,
    }
}

fn gateway(
    object: &DynamicObject,
    seen: &GatewayObjects,
    certificates: &mut Certificates,
) -> OwnGateway {
    let report = report("Gateway", object, GatewayDetails::Class);
    let refused = |condition: ConditionDraft| OwnGateway {
        report: report.clone(),
        accepted: condition,
        listeners: Vec::new(),
    };
    let written: api::Gateway = match spec(object) {
        Ok(spec) => spec,
        Err(why) => return refused(ConditionDraft::negative("Invalid", why)),
    };
    let accepted = if report.namespace != seen.namespace {
        let message = format!(
            "gateways of the class `{}` must be in namespace `{}`, whose Secrets Merlon may read",
            written.gateway_class_name, seen.namespace
        );
        ConditionDraft::negative("Invalid", message)
    } else if !written.addresses.is_empty() {
        let message = "spec.addresses: not supported, because the gateway's Service has the addresses; remove it";
        ConditionDraft::negative("UnsupportedAddress", message)
    } else if written.tls.is_some() {
        let message = "spec.tls: client certificates are not supported; remove it";
        ConditionDraft::negative("Invalid", message)
    } else if let Some(service) = namesake(&report, &seen.services) {
        let message = format!(
            "the Service `{service}` has the same name, and policies call both Service::\"{service}\"; rename one of them"
        );
        ConditionDraft::negative("Invalid", message)
    } else {
        ConditionDraft::positive("Accepted", "valid and in force")
    };
    let mut ports: BTreeMap<u16, String> = BTreeMap::new();
    let mut hosts = BTreeSet::new();
    let listeners = written.listeners.into_iter().map(|written| {
        let mut details = ListenerStatus {
            name: written.name.clone(),
            attached: 0,
            accepted: ConditionDraft::positive("Accepted", "valid"),
            resolved: ConditionDraft::positive("ResolvedRefs", "all references are resolved"),
            conflict: None,
        };
        let spoken = ports
            .entry(written.port)
            .or_insert(written.protocol.clone());
        let host = (written.port, written.hostname.clone());
        if *spoken != written.protocol {
            let message = format!("another listener uses {spoken} on port {}", written.port);
            details.conflict = Some(ConditionDraft::negative(
                "ProtocolConflict",
                message.clone(),
            ));
            details.accepted = ConditionDraft::negative("ProtocolConflict", message);
        } else if !hosts.insert(host) {
            let message = format!("another listener has this host on port {}", written.port);
            details.conflict = Some(ConditionDraft::negative(
                "HostnameConflict",
                message.clone(),
            ));
            details.accepted = ConditionDraft::negative("HostnameConflict", message);
        } else if OWN_PORTS.contains(&written.port) {
            let message = format!("port {} is reserved for the proxy", written.port);
            details.accepted = ConditionDraft::negative("PortUnavailable", message);
        }
        let converted = listener(
            &written,
            &report.namespace,
            seen,
            certificates,
            &mut details,
        );
        OwnListener {
            details,
            port: written.port,
            hostname: written.hostname,
            allowed: written.allowed_routes.unwrap_or_default(),
            converted,
        }
    });
    let listeners = listeners.collect();
    OwnGateway {
        report,
        accepted,
        listeners,
    }
}

fn listener(
    written: &api::Listener,
    namespace: &str,
    seen: &GatewayObjects,
    certificates: &mut Certificates,
    details: &mut ListenerStatus,
) -> Option<GatewayListener> {
    if !["HTTP", "HTTPS"].contains(&written.protocol.as_str()) {
        let message = format!("`{}` is not supported; use HTTP or HTTPS", written.protocol);
        details.accepted = ConditionDraft::negative("UnsupportedProtocol", message);
        return None;
    }
    let routes = written.allowed_routes.as_ref();
    let kinds = routes.map_or(&[][..], |routes| &routes.kinds);
    let wrong = kinds.iter().find(|one| {
        one.kind != "HTTPRoute" || one.group.as_deref().is_some_and(|group| group != GROUP)
    });
    if let Some(wrong) = wrong {
        let message = format!(
            "routes of kind `{}` are not supported; use HTTPRoute",
            wrong.kind
        );
        details.resolved = ConditionDraft::negative("InvalidRouteKinds", message);
        return None;
    }
    let mut tls = None;
    if written.protocol == "HTTPS" {
        match certificate(written.tls.as_ref(), namespace, seen) {
            Ok((reference, state)) => {
                let resource = Arc::new(StateResource::certificate(&state));
                certificates.insert(state.name, resource);
                tls = Some(ListenerTls {
                    certificate_refs: vec![reference],
                    ..ListenerTls::default()
                });
            }
            Err(wrong) if wrong.reason == "UnsupportedValue" => details.accepted = wrong,
            Err(wrong) => details.resolved = wrong,
        }
        tls.as_ref()?;
    }
    let name = written.name.parse().map_err(|_| {
        let message = format!("`{}` is not a valid listener name", written.name);
        details.accepted = ConditionDraft::negative("UnsupportedValue", message);
    });
    Some(GatewayListener {
        name: name.ok()?,
        port: written.port,
        protocol: written.protocol.clone(),
        hostname: written.hostname.clone(),
        tls,
    })
}

fn certificate(
    tls: Option<&api::Tls>,
    namespace: &str,
    seen: &GatewayObjects,
) -> Result<(CertificateRef, CertificateState), ConditionDraft> {
    let unsupported = |message: &str| Err(ConditionDraft::negative("UnsupportedValue", message));
    let invalid = |message: String| ConditionDraft::negative("InvalidCertificateRef", message);
    let Some(tls) = tls else {
        return Err(invalid("HTTPS requires `tls.certificateRefs`".to_owned()));
    };
    if tls.mode.as_deref().is_some_and(|mode| mode != "Terminate") {
        return unsupported("tls.mode: must be `Terminate`, because a gateway authorizes requests");
    }
    if tls.frontend_validation.is_some() {
        return unsupported("tls.frontendValidation: client certificates are not supported");
    }
    let reference = match tls.certificate_refs.as_slice() {
        [] => return Err(invalid("`tls.certificateRefs` is empty".to_owned())),
        [one] => one,
        _ => {
            return unsupported(
                "tls.certificateRefs: only one per listener is supported; use one listener per host",
            );
        }
    };
    let kind = reference.kind.as_deref().unwrap_or("Secret");
    if reference
        .group
        .as_deref()
        .is_some_and(|group| !group.is_empty())
        || kind != "Secret"
    {
        return Err(invalid(format!(
            "a certificate must be a Secret, not a `{kind}`"
        )));
    }
    if let Some(other) = reference.namespace.as_deref()
        && other != namespace
    {
        let message =
            format!("Merlon cannot read Secrets in `{other}`; create it in `{namespace}`");
        return Err(ConditionDraft::negative("RefNotPermitted", message));
    }
    let full = format!("{namespace}/{}", reference.name);
    let found = seen.secrets.iter().find(|secret| {
        secret.namespace().as_deref() == Some(namespace) && secret.name_any() == reference.name
    });
    let Some(secret) = found else {
        return Err(invalid(format!(
            "there is no Secret `{full}` of type kubernetes.io/tls"
        )));
    };
    let part = |name: &str| {
        let bytes = secret.data.as_ref().and_then(|data| data.get(name));
        let text = bytes.and_then(|bytes| String::from_utf8(bytes.0.clone()).ok());
        text.ok_or_else(|| invalid(format!("the Secret `{full}` lacks `{name}`")))
    };
    let (chain, key) = (part("tls.crt")?, part("tls.key")?);
    usable(&chain, &key).map_err(|why| invalid(format!("the Secret `{full}`: {why}")))?;
    let wrong_name = |_| invalid(format!("`{full}` is not a valid Secret name"));
    let name: ServiceName = full.parse().map_err(wrong_name)?;
    let reference = CertificateRef {
        name: name.name.clone(),
    };
    Ok((reference, CertificateState { name, chain, key }))
}

/// Checks a certificate as the proxy does, because the proxy rejects its whole state if one is not valid.
fn usable(chain: &str, key: &str) -> Result<(), String> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| format!("tls.crt: {error}"))?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
        .map_err(|error| format!("tls.key: {error}"))?;
    let pair = CertifiedKey::from_der(chain, key, provider());
    pair.map(|_| ()).map_err(|error| error.to_string())
}

/// A Service with the name of a Gateway that does not belong to the Gateway.
fn namesake(gateway: &GatewayStatus, services: &[Arc<Service>]) -> Option<String> {
    let mut all = services.iter();
    let found = all.find(|service| {
        service.namespace().as_deref() == Some(gateway.namespace.as_str())
            && service.name_any() == gateway.name
            && !is_of_a_gateway(service)
    });
    found.map(|service| format!("{}/{}", gateway.namespace, service.name_any()))
}

/// Whether a Service selects the proxies of a Gateway.
pub(crate) fn is_of_a_gateway(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    let selector = spec.and_then(|spec| spec.selector.as_ref());
    selector.is_some_and(|selector| selector.contains_key(GATEWAY_LABEL))
}

/// The names of all Services, and the names with each port.
fn services(all: &[Arc<Service>]) -> (BTreeSet<String>, BTreeSet<(String, u16)>) {
    let (mut names, mut ports) = (BTreeSet::new(), BTreeSet::new());
    for service in all {
        let namespace = service.namespace().unwrap_or_default();
        let name = format!("{namespace}/{}", service.name_any());
        let own = service.spec.iter().filter_map(|spec| spec.ports.as_ref());
        for port in own.flatten() {
            if let Ok(port) = u16::try_from(port.port) {
                ports.insert((name.clone(), port));
            }
        }
        names.insert(name);
    }
    (names, ports)
}

/// The addresses of a Gateway, which are those of its Services.
fn addresses(namespace: &str, name: &str, services: &[Arc<Service>]) -> Vec<Value> {
    let own = services.iter().filter(|service| {
        let selector = service
            .spec
            .as_ref()
            .and_then(|spec| spec.selector.as_ref());
        service.namespace().as_deref() == Some(namespace)
            && selector
                .and_then(|selector| selector.get(GATEWAY_LABEL))
                .map(String::as_str)
                == Some(name)
    });
    let mut external = Vec::new();
    let mut internal = Vec::new();
    for service in own {
        let status = service.status.as_ref();
        let balancer = status.and_then(|status| status.load_balancer.as_ref());
        for ingress in balancer
            .iter()
            .filter_map(|one| one.ingress.as_ref())
            .flatten()
        {
            if let Some(ip) = &ingress.ip {
                external.push(json!({ "type": "IPAddress", "value": ip }));
            } else if let Some(host) = &ingress.hostname {
                external.push(json!({ "type": "Hostname", "value": host }));
            }
        }
        let ips = service
            .spec
            .as_ref()
            .and_then(|spec| spec.cluster_ips.as_ref());
        for ip in ips.into_iter().flatten().filter(|ip| *ip != "None") {
            internal.push(json!({ "type": "IPAddress", "value": ip }));
        }
    }
    if external.is_empty() {
        internal
    } else {
        external
    }
}

fn attach_route(
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

#[cfg(test)]
mod tests;
