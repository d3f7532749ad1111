use std::net::{IpAddr, SocketAddr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::name::{ResourceName, ServiceName};

/// A program with a sidecar proxy, outside Kubernetes. Services select it by its `metadata.labels`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadSpec {
    /// The workload's service account. Its identity is `spiffe://<trust-domain>/ns/<namespace>/sa/<serviceAccount>`.
    pub service_account: ResourceName,
    /// Where other proxies reach its proxy. If omitted, the workload only sends requests and receives none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub mesh_address: Option<SocketAddr>,
    /// Addresses of the program if connections to it are intercepted, as in a pod. Its proxy is reached at the same
    /// addresses, on every port of the program. Several addresses are of different families.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>")]
    pub addresses: Vec<IpAddr>,
    /// `WorkloadGroup`s that the workload belongs to in policies.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Local addresses through which the program reaches services if its connections are not intercepted.
    #[serde(default)]
    pub outbound: Vec<OutboundListener>,
}

/// A local address that forwards to one port of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OutboundListener {
    /// A loopback address and port.
    #[schemars(with = "String")]
    pub listen: SocketAddr,
    /// The Service, written `namespace/name`.
    pub service: ServiceName,
    /// The Service's port.
    pub port: u16,
}
