//! The resource documents that the builder writes.

use std::net::SocketAddr;

use super::names::{NAMESPACE, TRUST_DOMAIN};

const HEAD: &str = "apiVersion: merlon.io/v1alpha1\n";

/// The `MeshConfig`. `extra` is added to its `spec`, indented by two spaces.
pub(super) fn mesh(extra: &str) -> String {
    format!(
        "{HEAD}kind: MeshConfig\nmetadata: {{ name: mesh, namespace: merlon-system }}\n\
         spec:\n  trustDomain: {TRUST_DOMAIN}\n{extra}"
    )
}

/// A `Workload` with a service account and an `app` label of the same name.
pub(super) fn workload(
    name: &str,
    mesh_address: Option<SocketAddr>,
    outbound: &[(SocketAddr, &str, u16)],
) -> String {
    let mut text = format!(
        "{HEAD}kind: Workload\nmetadata: {{ name: {name}, namespace: {NAMESPACE}, labels: {{ app: {name} }} }}\n\
         spec:\n  serviceAccount: {name}\n"
    );
    if let Some(address) = mesh_address {
        text += &format!("  meshAddress: {address}\n");
    }
    if !outbound.is_empty() {
        text += "  outbound:\n";
    }
    for (listen, service, port) in outbound {
        text += &format!(
            "    - {{ listen: \"{listen}\", service: {NAMESPACE}/{service}, port: {port} }}\n"
        );
    }
    text
}

/// A `Service` for the workload of the same name.
pub(super) fn service(name: &str, port: u16, target_port: u16, protocol: &str) -> String {
    format!(
        "{HEAD}kind: Service\nmetadata: {{ name: {name}, namespace: {NAMESPACE} }}\n\
         spec:\n  selector: {{ app: {name} }}\n  ports:\n    \
         - {{ port: {port}, targetPort: {target_port}, appProtocol: {protocol} }}\n"
    )
}

/// A document of `kind` with a target reference to a Service. `spec` is added to its `spec`, without indentation.
pub(super) fn attached(kind: &str, name: &str, service: &str, spec: &str) -> String {
    let spec: String = spec.lines().map(|line| format!("  {line}\n")).collect();
    format!(
        "{HEAD}kind: {kind}\nmetadata: {{ name: {name}, namespace: {NAMESPACE} }}\n\
         spec:\n  targetRefs: [{{ kind: Service, name: {service} }}]\n{spec}"
    )
}

/// An `AuthorizationPolicy` for a Service.
pub(super) fn policy(name: &str, service: &str, cedar: &str) -> String {
    let cedar: String = cedar
        .trim()
        .lines()
        .map(|line| format!("  {line}\n"))
        .collect();
    attached(
        "AuthorizationPolicy",
        name,
        service,
        &format!("policies: |\n{cedar}"),
    )
}

/// A permit policy for a workload. The action is an HTTP method, a group of methods (`http`, `read`, `write`), `grpc` or
/// `tcp`; `**` at the end of the path matches any suffix.
pub(super) fn permit(id: &str, workload: &str, action: &str, path: &str) -> String {
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
        "@id(\"{id}\")\npermit(principal == Workload::\"{NAMESPACE}/{workload}\", \
         action {operator} Action::\"{action}\", resource){condition};\n"
    )
}
