//! One proxy's state as data: the compiler produces it from the resources, the push transfers it, and the proxy compiles
//! it.
//!
//! These types cross the wire as JSON between builds of different versions. So fields are only added, with a default,
//! unknown fields are ignored, and a change of meaning is a new field. The types of [`crate::resource`] are the exception:
//! a proxy that does not know one of their fields rejects the state and keeps the previous one, because an ignored field
//! could have been a restriction. So a new field there is not serialized if it has its default, and old proxies never see
//! a field that is not used. The state is complete: a proxy that has all resources of its [`Manifest`] needs nothing else.

mod manifest;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

pub use self::manifest::{Manifest, ManifestEntry, ResourceKey, ResourceKind, Version};
use crate::{
    name::{Namespace, ServiceName, SpiffeId, TrustDomain, WorkloadId},
    resource::{
        AppProtocol, ClaimType, GatewayListener, HttpRouteSpec, OutboundListener, OutboundMode,
        RateLimitRule, RequestAuthenticationSpec, RequestValidationSpec, SecretFiles, SecretHeader,
    },
};

/// Settings of the whole mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MeshState {
    /// The mesh's trust domain.
    pub trust_domain: TrustDomain,
    /// The namespace whose policies may apply to all others.
    pub root_namespace: Namespace,
    /// What happens to connections to destinations outside the mesh.
    #[serde(default)]
    pub outbound: OutboundMode,
    /// Identities of gateways. Their statement of a request's origin is trusted.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub gateways: BTreeSet<SpiffeId>,
}

/// The root certificates of one trust domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrustBundle {
    /// The trust domain.
    pub trust_domain: TrustDomain,
    /// PEM certificates, self-signed CAs; never empty.
    pub roots: Vec<String>,
}

/// The proxy's own workload (a sidecar's) or Gateway (a gateway's).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadState {
    /// The proxy's identity.
    pub identity: SpiffeId,
    /// The Services that the workload serves.
    #[serde(default)]
    pub services: Vec<ServiceName>,
    /// Local addresses through which the program reaches services if its connections are not intercepted.
    #[serde(default)]
    pub outbound: Vec<OutboundListener>,
    /// Whether connections without mutual TLS are accepted too.
    #[serde(default)]
    pub permissive: bool,
    /// Secrets from Vault, sorted by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<GrantedSecret>,
    /// Listeners and routes, if this proxy is a gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<GatewayState>,
}

/// How a secret is delivered. Its content is a [`SecretState`] of the same name, which is pushed once it has been read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GrantedSecret {
    /// The `SecretGrant`, as `namespace/name`.
    pub name: ServiceName,
    /// The secret's path below the grant's namespace. Content that was read from another path is not delivered.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// Delivery as files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<SecretFiles>,
    /// Delivery as headers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<SecretHeader>,
}

/// The listeners and routes of a gateway.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayState {
    /// The gateway's name in policies: `Service::"<namespace>/<gateway>"`. It is also in [`WorkloadState::services`], so
    /// that its policies, limits and validation are an [`InboundService`] like those of a Service.
    pub name: ServiceName,
    /// The listeners.
    pub listeners: Vec<GatewayListener>,
    /// The routes, each with its namespace. If two match a request equally well, the first is selected.
    #[serde(default)]
    pub routes: Vec<GatewayRoute>,
}

/// A route of a gateway.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayRoute {
    /// The `HTTPRoute`, as `namespace/name`.
    pub name: ServiceName,
    /// The route's `spec`. References are relative to the namespace of [`GatewayRoute::name`].
    pub spec: HttpRouteSpec,
}

/// A Service as the proxies of its workloads enforce it, or a Gateway as its proxy does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InboundService {
    /// The Service or Gateway.
    pub name: ServiceName,
    /// The Service's ports. Empty for a Gateway.
    #[serde(default)]
    pub ports: Vec<InboundPort>,
    /// `ServiceGroup`s that it belongs to.
    #[serde(default)]
    pub groups: Vec<String>,
    /// The Cedar documents that apply to it, those of the root namespace first.
    #[serde(default)]
    pub policies: Vec<PolicyDocument>,
    /// Members of each `WorkloadGroup` that these policies refer to.
    #[serde(default)]
    pub workload_groups: BTreeMap<String, Vec<WorkloadId>>,
    /// Claims and path parameters that these policies refer to but only documents on other targets declare: a policy for
    /// the whole mesh may read a claim that this service's issuers do not have.
    #[serde(default)]
    pub declared_elsewhere: DeclaredNames,
    /// Accepted tokens. If empty, requests have no user, and tokens are not checked.
    #[serde(default)]
    pub authentication: Vec<Attached<RequestAuthenticationSpec>>,
    /// Rate limits. A request must pass all of them.
    #[serde(default)]
    pub limits: Vec<Attached<RateLimitRule>>,
    /// Request validation. A request must pass all of it.
    #[serde(default)]
    pub validation: Vec<Attached<RequestValidationSpec>>,
}

/// Names that the policies' schema must declare.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeclaredNames {
    /// Claims in `context.user.claims`, with their types.
    #[serde(default)]
    pub claims: BTreeMap<String, ClaimType>,
    /// Parameters in `context.params`, sorted.
    #[serde(default)]
    pub params: Vec<String>,
}

/// A port of an inbound service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InboundPort {
    /// The Service's port.
    pub port: u16,
    /// The port that the program listens on.
    pub target_port: u16,
    /// The protocol.
    #[serde(default)]
    pub protocol: AppProtocol,
}

/// A setting that is attached to a target, with its resource.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attached<T> {
    /// The resource, as `namespace/name`.
    pub from: ServiceName,
    /// The setting.
    pub spec: T,
}

/// One Cedar document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyDocument {
    /// The `AuthorizationPolicy`, as `namespace/name`. Together with a policy's `@id`, it identifies a policy:
    /// `shop/orders#read-own`.
    pub name: ServiceName,
    /// Where it is defined, for example `policies/orders.yaml:12:1`.
    #[serde(default)]
    pub origin: String,
    /// Cedar text.
    pub text: String,
}

/// A Service as the proxies of its clients see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Destination {
    /// The Service.
    pub name: ServiceName,
    /// The Service's ports.
    pub ports: Vec<DestinationPort>,
    /// The endpoints, sorted by address.
    #[serde(default)]
    pub endpoints: Vec<Endpoint>,
}

/// A port of a destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DestinationPort {
    /// The port that clients use.
    pub port: u16,
    /// The protocol.
    #[serde(default)]
    pub protocol: AppProtocol,
}

/// One proxy that serves a destination.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// Where its proxy accepts mesh TLS. In standalone mode without identities, where the program listens.
    pub address: SocketAddr,
    /// The identity that the client's proxy requires. `None` only in standalone mode without identities: the connection is
    /// then plain text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<SpiffeId>,
    /// The port to dial for each port of the Service, if connections to it are intercepted. Other ports are reached at
    /// `address`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<u16, u16>,
}

impl Endpoint {
    /// The address to dial for a port of the Service.
    pub fn dial(&self, port: u16) -> SocketAddr {
        match self.ports.get(&port) {
            Some(port) => SocketAddr::new(self.address.ip(), *port),
            None => self.address,
        }
    }

    /// Whether this is an address of its program, if connections to it are intercepted.
    pub fn is_at(&self, address: SocketAddr) -> bool {
        self.address.ip() == address.ip() && self.ports.values().any(|port| *port == address.port())
    }
}

/// The port on which a proxy accepts intercepted inbound connections.
pub const INBOUND_PORT: u16 = 7561;

/// The meaning of an address and port for the proxy of a program that connects to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum AddressState {
    /// A port of a Service. Its [`Destination`] is in the same state.
    Service {
        /// The Service.
        service: ServiceName,
        /// The Service's port.
        port: u16,
        /// The workload, by the first of its addresses, if the address belongs to one workload.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        workload: Option<IpAddr>,
        /// Other Services that this workload serves on the same port, sorted by name. Secret headers that the caller was
        /// granted for any of them are added.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        also: Vec<ServiceName>,
    },
    /// The address belongs to the mesh but serves nothing on this port. Connections are refused.
    Closed,
    /// The address is outside the mesh.
    Outside,
}

/// The certificate of a gateway's listener. Only the proxies of that gateway receive it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateState {
    /// The Secret that it was read from.
    pub name: ServiceName,
    /// PEM certificates, leaf first.
    pub chain: String,
    /// PEM private key: PKCS #8, PKCS #1 or SEC 1. `Debug` omits it.
    pub key: String,
}

impl fmt::Debug for CertificateState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateState")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// A secret's content. Only the proxies of the workload that it is granted to receive it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretState {
    /// The `SecretGrant`.
    pub name: ServiceName,
    /// The path that it was read from, below the grant's namespace.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// The secret's version in Vault.
    pub version: u64,
    /// The secret's keys and values. `Debug` omits them.
    pub data: BTreeMap<String, String>,
}

impl fmt::Debug for SecretState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretState")
            .field("name", &self.name)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

/// The name of a policy: `shop/orders#read-own`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyName {
    /// The `AuthorizationPolicy`.
    pub document: ServiceName,
    /// The policy's `@id`.
    pub id: String,
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.document, self.id)
    }
}

impl FromStr for PolicyName {
    type Err = crate::name::NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (document, id) = text.split_once('#').unwrap_or((text, ""));
        Ok(Self {
            document: document.parse()?,
            id: id.to_owned(),
        })
    }
}

impl Serialize for PolicyName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PolicyName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}
