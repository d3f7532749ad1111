//! The resource documents that the builder writes.

use std::{collections::BTreeMap, net::SocketAddr};

use merlon_config::resource::{
    AppProtocol, BackendRef, GATEWAY_API, GatewayListener, GatewaySpec, HttpPathMatch,
    HttpRouteMatch, HttpRouteRule, HttpRouteSpec, MERLON, OutboundListener, ParentRef,
    PathMatchType, ServicePort, ServiceSpec, Spec, WorkloadSpec,
};
use serde_json::{Value, json};

use super::names::{TRUST_DOMAIN, split};

const HEAD: &str = "apiVersion: merlon.io/v1alpha1\n";

/// A document with this spec. `name` may have a namespace: `bank/ledger`.
fn document(name: &str, labels: &[(&str, &str)], spec: &Spec) -> String {
    let (namespace, name) = split(name);
    let (version, content) = match spec {
        Spec::Workload(spec) => (MERLON, serde_json::to_value(spec)),
        Spec::Service(spec) => (MERLON, serde_json::to_value(spec)),
        Spec::Gateway(spec) => (GATEWAY_API, serde_json::to_value(spec)),
        Spec::HttpRoute(spec) => (GATEWAY_API, serde_json::to_value(spec)),
        other => panic!("the builder writes no {}", other.kind()),
    };
    let labels: BTreeMap<_, _> = labels.iter().copied().collect();
    let document: Value = json!({
        "apiVersion": version,
        "kind": spec.kind(),
        "metadata": { "name": name, "namespace": namespace, "labels": labels },
        "spec": content.expect("a document"),
    });
    serde_saphyr::to_string(&document).expect("a document")
}

fn parse<T: std::str::FromStr>(text: &str) -> T {
    text.parse()
        .unwrap_or_else(|_| panic!("`{text}` is not a {}", std::any::type_name::<T>()))
}

/// The `MeshConfig`. `extra` is added to its `spec`, indented by two spaces.
pub(super) fn mesh(extra: &str) -> String {
    format!(
        "{HEAD}kind: MeshConfig\nmetadata: {{ name: mesh, namespace: merlon-system }}\n\
         spec:\n  trustDomain: {TRUST_DOMAIN}\n{extra}"
    )
}

/// A `Workload` of a service account, with an `app` label of the account's name.
pub(super) fn workload(
    name: &str,
    account: &str,
    mesh_address: Option<SocketAddr>,
    outbound: &[(SocketAddr, &str, u16)],
) -> String {
    let (_, account) = split(account);
    let outbound = outbound
        .iter()
        .map(|(listen, service, port)| {
            let (namespace, service) = split(service);
            OutboundListener {
                listen: *listen,
                service: parse(&format!("{namespace}/{service}")),
                port: *port,
            }
        })
        .collect();
    let spec = WorkloadSpec {
        service_account: parse(account),
        mesh_address,
        addresses: Vec::new(),
        groups: Vec::new(),
        outbound,
    };
    document(name, &[("app", account)], &Spec::Workload(spec))
}

/// A `Service` for the workloads with an `app` label of its name.
pub(super) fn service(name: &str, port: u16, target_port: u16, protocol: &str) -> String {
    let app_protocol: AppProtocol = serde_json::from_value(protocol.into())
        .unwrap_or_else(|error| panic!("the protocol of `{name}`: {error}"));
    let app = split(name).1.to_owned();
    let spec = ServiceSpec {
        selector: [("app".to_owned(), app)].into(),
        ports: vec![ServicePort {
            name: None,
            port,
            target_port: Some(target_port),
            app_protocol,
        }],
        addresses: Vec::new(),
        endpoints: None,
        groups: Vec::new(),
    };
    document(name, &[], &Spec::Service(spec))
}

/// A `Gateway` with one HTTP listener.
pub(super) fn gateway(name: &str, port: u16) -> String {
    let spec = GatewaySpec {
        gateway_class_name: "merlon".to_owned(),
        service_account: None,
        listeners: vec![GatewayListener {
            name: parse("http"),
            port,
            protocol: "HTTP".to_owned(),
            hostname: None,
            tls: None,
        }],
    };
    document(name, &[], &Spec::Gateway(spec))
}

/// An `HTTPRoute` of a Gateway: what begins with `prefix` at `host` goes to `port` of a service.
pub(super) fn route(
    name: &str,
    gateway: &str,
    (host, prefix): (&str, &str),
    (service, port): (&str, u16),
) -> String {
    let (namespace, service) = split(service);
    let (own, gateway) = split(gateway);
    let spec = HttpRouteSpec {
        parent_refs: vec![ParentRef {
            name: parse(gateway),
            namespace: None,
            section_name: None,
        }],
        hostnames: vec![host.to_owned()],
        rules: vec![HttpRouteRule {
            matches: vec![HttpRouteMatch {
                path: Some(HttpPathMatch {
                    kind: PathMatchType::PathPrefix,
                    value: prefix.to_owned(),
                }),
                ..HttpRouteMatch::default()
            }],
            backend_refs: vec![BackendRef {
                name: parse(service),
                namespace: (namespace != own).then(|| parse(namespace)),
                port,
                weight: 1,
            }],
        }],
    };
    document(&format!("{own}/{name}"), &[], &Spec::HttpRoute(spec))
}

/// What a policy is attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    Service,
    Gateway,
}

/// A document of `kind` with a target reference. `spec` is added to its `spec`, without indentation.
pub(super) fn attached(kind: &str, name: &str, (target, to): (Target, &str), spec: &str) -> String {
    let spec: String = spec.lines().map(|line| format!("  {line}\n")).collect();
    let (namespace, to) = split(to);
    format!(
        "{HEAD}kind: {kind}\nmetadata: {{ name: {name}, namespace: {namespace} }}\n\
         spec:\n  targetRefs: [{{ kind: {target:?}, name: {to} }}]\n{spec}"
    )
}

/// An `AuthorizationPolicy`.
pub(super) fn policy(name: &str, target: (Target, &str), cedar: &str) -> String {
    let cedar: String = cedar
        .trim()
        .lines()
        .map(|line| format!("  {line}\n"))
        .collect();
    attached(
        "AuthorizationPolicy",
        name,
        target,
        &format!("policies: |\n{cedar}"),
    )
}

/// A permit policy for a workload. The action is an HTTP method, a group of methods (`http`, `read`, `write`), `grpc` or
/// `tcp`; `**` at the end of the path matches any suffix.
pub(super) fn permit(id: &str, workload: &str, action: &str, path: &str) -> String {
    let (namespace, name) = split(workload);
    let condition = match (action, path) {
        ("grpc" | "tcp", _) | (_, "/**") => String::new(),
        (_, path) => match path.strip_suffix("**") {
            Some(start) => format!(" when {{ context.path like \"{start}*\" }}"),
            None => format!(" when {{ context.path == \"{path}\" }}"),
        },
    };
    let operator = if ["http", "read", "write"].contains(&action) {
        "in"
    } else {
        "=="
    };
    format!(
        "@id(\"{id}\")\npermit(principal == Workload::\"{namespace}/{name}\", \
         action {operator} Action::\"{action}\", resource){condition};\n"
    )
}
