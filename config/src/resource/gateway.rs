//! The part of Gateway API v1 (`gateway.networking.k8s.io/v1`) that Merlon supports.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::name::{Namespace, ResourceName};

/// A gateway that accepts requests from outside the mesh.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GatewaySpec {
    /// `merlon`.
    pub gateway_class_name: String,
    /// The service account of the gateway's proxy. Default: the Gateway's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account: Option<ResourceName>,
    /// The listeners. At least one.
    pub listeners: Vec<GatewayListener>,
}

/// One listener of a gateway.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GatewayListener {
    /// The listener's name, unique in the Gateway.
    pub name: ResourceName,
    /// The port. 1–65535.
    pub port: u16,
    /// `HTTP` or `HTTPS`.
    pub protocol: String,
    /// The host name that the listener serves. If omitted, all. `*.` matches one or more labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// The certificate. Only with `HTTPS`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ListenerTls>,
}

/// A listener's certificate: two files outside Kubernetes, a Secret of type `kubernetes.io/tls` in Kubernetes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ListenerTls {
    /// PEM file with the certificate chain. Requires `keyFile`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_file: Option<PathBuf>,
    /// PEM file with the private key. Requires `certificateFile`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// In Kubernetes, instead of files: one Secret.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub certificate_refs: Vec<CertificateRef>,
}

/// A Secret that holds a certificate and its key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CertificateRef {
    /// The Secret's name, in the Gateway's namespace.
    pub name: ResourceName,
}

/// Routes requests to Services.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRouteSpec {
    /// The Gateways that the route is attached to.
    pub parent_refs: Vec<ParentRef>,
    /// Host names. If omitted, the listener's.
    #[serde(default)]
    pub hostnames: Vec<String>,
    /// The rules. Gateway API's precedence selects among them, not their order.
    pub rules: Vec<HttpRouteRule>,
}

/// A Gateway that a route is attached to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ParentRef {
    /// The Gateway's name.
    pub name: ResourceName,
    /// The Gateway's namespace. If omitted, the route's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Namespace>,
    /// The name of one listener of the Gateway. If omitted, all listeners.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub section_name: Option<ResourceName>,
}

/// One rule: a request that satisfies any of `matches` goes to one of `backendRefs`, chosen by weight.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRouteRule {
    /// The conditions. If omitted, every request matches.
    #[serde(default)]
    pub matches: Vec<HttpRouteMatch>,
    /// The Services to send requests to. If empty, the response is 500, as Gateway API specifies.
    #[serde(default)]
    pub backend_refs: Vec<BackendRef>,
}

/// Conditions that must all be satisfied.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRouteMatch {
    /// The path. If omitted, `PathPrefix` `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<HttpPathMatch>,
    /// Headers with their exact values.
    #[serde(default)]
    pub headers: Vec<HeaderMatch>,
    /// The method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
}

/// Matches the path exactly or by a prefix of whole segments.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpPathMatch {
    /// How `value` is compared.
    #[serde(rename = "type", default)]
    pub kind: PathMatchType,
    /// The path or prefix.
    pub value: String,
}

/// How a path is compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PathMatchType {
    /// By a prefix of whole segments.
    #[default]
    PathPrefix,
    /// The whole path.
    Exact,
}

/// A header with exactly this value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderMatch {
    /// The header's name, case-insensitive.
    pub name: String,
    /// The header's value.
    pub value: String,
}

/// A Service and its share of the requests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackendRef {
    /// The Service's name.
    pub name: ResourceName,
    /// The Service's namespace. If omitted, the route's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Namespace>,
    /// The Service's port.
    pub port: u16,
    /// The Service's share of the requests. 0–1,000,000; default 1.
    #[serde(default = "one")]
    pub weight: u32,
}

fn one() -> u32 {
    1
}
