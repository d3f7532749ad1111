//! The part of Gateway API v1 (`gateway.networking.k8s.io/v1`) that Merlon reads.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::name::{Namespace, ResourceName};

/// An edge: where requests from outside the mesh come in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GatewaySpec {
    /// `merlon`.
    pub gateway_class_name: String,
    /// Whom the gateway's proxy runs as. Default: the Gateway's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account: Option<ResourceName>,
    /// Where it listens. At least one.
    pub listeners: Vec<GatewayListener>,
}

/// One address of a gateway.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GatewayListener {
    /// Its name, unique in the Gateway.
    pub name: ResourceName,
    /// The port. 1–65535.
    pub port: u16,
    /// `HTTP` or `HTTPS`.
    pub protocol: String,
    /// The host name it answers to; left out: all. `*.` stands for one or more labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// For `HTTPS`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ListenerTls>,
}

/// A listener's certificate: outside Kubernetes two files, in Kubernetes a Secret of type `kubernetes.io/tls`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ListenerTls {
    /// PEM file with the certificate chain. Together with `keyFile`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_file: Option<PathBuf>,
    /// PEM file with the private key. Together with `certificateFile`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// In Kubernetes instead of files: one Secret.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub certificate_refs: Vec<CertificateRef>,
}

/// A Secret with a certificate and its key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CertificateRef {
    /// The Secret's name, in the Gateway's namespace.
    pub name: ResourceName,
}

/// Which requests go where.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRouteSpec {
    /// The Gateways it belongs to.
    pub parent_refs: Vec<ParentRef>,
    /// Host names; left out: the listener's.
    #[serde(default)]
    pub hostnames: Vec<String>,
    /// Looked at by the precedence of Gateway API, not in writing order.
    pub rules: Vec<HttpRouteRule>,
}

/// A Gateway that a route belongs to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ParentRef {
    /// The Gateway's name.
    pub name: ResourceName,
    /// Its namespace; left out: the route's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Namespace>,
    /// The one listener of it that is meant, by name; left out: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub section_name: Option<ResourceName>,
}

/// One rule: any of `matches`, then one of `backendRefs` by weight.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRouteRule {
    /// Left out: every path.
    #[serde(default)]
    pub matches: Vec<HttpRouteMatch>,
    /// Where to. None: 500, as Gateway API says.
    #[serde(default)]
    pub backend_refs: Vec<BackendRef>,
}

/// All parts must fit.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRouteMatch {
    /// Left out: `PathPrefix` `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<HttpPathMatch>,
    /// Exact values.
    #[serde(default)]
    pub headers: Vec<HeaderMatch>,
    /// The method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
}

/// A path, exact or by prefix of whole segments.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpPathMatch {
    /// How.
    #[serde(rename = "type", default)]
    pub kind: PathMatchType,
    /// What.
    pub value: String,
}

/// How a path is matched.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PathMatchType {
    /// Whole segments from the start.
    #[default]
    PathPrefix,
    /// The whole path.
    Exact,
}

/// A header with exactly this value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderMatch {
    /// Its name, in any case.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// A Service and its share.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackendRef {
    /// The Service's name.
    pub name: ResourceName,
    /// Its namespace; left out: the route's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Namespace>,
    /// Its port.
    pub port: u16,
    /// Its share. 0–1,000,000; default 1.
    #[serde(default = "one")]
    pub weight: u32,
}

fn one() -> u32 {
    1
}
