use std::net::{IpAddr, SocketAddr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::name::{ResourceName, ServiceName};

/// A program with a proxy beside it, for runs outside Kubernetes. Its `metadata.labels` are what Services select.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadSpec {
    /// Whom it runs as: its identity is `spiffe://<trust-domain>/ns/<namespace>/sa/<serviceAccount>`.
    pub service_account: ResourceName,
    /// Where other proxies reach its proxy. Left out: it only calls, nobody calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub mesh_address: Option<SocketAddr>,
    /// Addresses at which its program is called where connections to it are intercepted, as a pod's are. Its proxy is
    /// reached there too, on whatever port is meant. Several are of several families.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>")]
    pub addresses: Vec<IpAddr>,
    /// `WorkloadGroup`s of policies that it is in.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Local addresses at which its program finds services, where nothing intercepts its connections.
    #[serde(default)]
    pub outbound: Vec<OutboundListener>,
}

/// A local address that leads to one port of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OutboundListener {
    /// A loopback address and port.
    #[schemars(with = "String")]
    pub listen: SocketAddr,
    /// The Service, as `namespace/name`.
    pub service: ServiceName,
    /// The Service's port.
    pub port: u16,
}
