use std::{collections::BTreeMap, net::IpAddr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::name::ResourceName;

/// A named set of workloads that serve the same, for runs outside Kubernetes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceSpec {
    /// Labels of the Workloads of this namespace that serve it. Not empty.
    pub selector: BTreeMap<String, String>,
    /// Its ports. At least one.
    pub ports: Vec<ServicePort>,
    /// Addresses that lead to it, whichever workload then answers, as the cluster addresses of Kubernetes. None: it is
    /// called by name, or at its workloads' own addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>")]
    pub addresses: Vec<IpAddr>,
    /// Addresses of those that are ready to serve it. Left out: every workload that the selector selects. Those among
    /// them that are no Workload of the mesh are not called; where none is, the Service is not of the mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<String>>")]
    pub endpoints: Option<Vec<IpAddr>>,
    /// `ServiceGroup`s of policies that it is in.
    #[serde(default)]
    pub groups: Vec<String>,
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServicePort {
    /// Its name; compulsory where there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<ResourceName>,
    /// The port that callers use. 1–65535.
    pub port: u16,
    /// The port that the program listens on, on loopback. Default: `port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_port: Option<u16>,
    /// What is spoken on it. Default: `http`.
    #[serde(default)]
    pub app_protocol: AppProtocol,
}

/// What is spoken on a port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum AppProtocol {
    /// HTTP/1.1 or HTTP/2 with prior knowledge; the program gets what its caller spoke.
    #[default]
    Http,
    /// HTTP/2 with prior knowledge only.
    H2c,
    /// gRPC: HTTP/2, and refusals are gRPC statuses.
    Grpc,
    /// Opaque bytes.
    Tcp,
}
