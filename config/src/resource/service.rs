use std::{collections::BTreeMap, net::IpAddr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::name::ResourceName;

/// A named set of workloads that provide the same service, outside Kubernetes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceSpec {
    /// Labels of the Workloads in this namespace that serve it. Not empty.
    pub selector: BTreeMap<String, String>,
    /// The Service's ports. At least one.
    pub ports: Vec<ServicePort>,
    /// Virtual addresses of the Service, like the cluster IPs of Kubernetes. If empty, the Service is called by name or at
    /// the addresses of its workloads.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>")]
    pub addresses: Vec<IpAddr>,
    /// Addresses that are ready to serve it. If omitted, every workload that the selector selects. Addresses that belong
    /// to no Workload of the mesh are not called. If none belongs to a Workload, the Service is outside the mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<String>>")]
    pub endpoints: Option<Vec<IpAddr>>,
    /// `ServiceGroup`s that the Service belongs to in policies.
    #[serde(default)]
    pub groups: Vec<String>,
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServicePort {
    /// The port's name. Required if the Service has several ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<ResourceName>,
    /// The port that callers use. 1–65535.
    pub port: u16,
    /// The port that the program listens on, on loopback. Default: `port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_port: Option<u16>,
    /// The protocol of the port. Default: `http`.
    #[serde(default)]
    pub app_protocol: AppProtocol,
}

/// The protocol of a port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum AppProtocol {
    /// HTTP/1.1 or HTTP/2 with prior knowledge. The program receives the version that its caller used.
    #[default]
    Http,
    /// HTTP/2 with prior knowledge only.
    H2c,
    /// gRPC: HTTP/2, and a denial is a gRPC status.
    Grpc,
    /// Opaque bytes.
    Tcp,
}
