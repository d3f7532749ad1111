//! One proxy's state as data: what the compiler makes of the resources, what the push carries, what the proxy compiles.
//!
//! These types cross the wire as JSON between builds of different age. So fields are only ever added, with a default,
//! and unknown ones are passed over; a change of meaning is a new field. What people wrote (the types of
//! [`crate::resource`]) is the exception: a proxy that does not know a field of it refuses the state and keeps the one
//! before, since what it passed over could have been a restriction; so a new field there is left out where it says
//! nothing, and old proxies never see one that nobody uses. They are complete: a proxy that holds the
//! resources its [`Manifest`] names needs nothing else.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use crate::{
    name::{Namespace, ServiceName, SpiffeId, TrustDomain, WorkloadId},
    resource::{
        AppProtocol, ClaimType, GatewayListener, HttpRouteSpec, OutboundListener, OutboundMode,
        RateLimitRule, RequestAuthenticationSpec, RequestValidationSpec, SecretFiles, SecretHeader,
    },
};

/// SHA-256 of a resource's bytes, or of a manifest's, in lower-case hexadecimal.
///
/// A version is a content hash, so that replicas and restarts of the control plane agree on it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Version(String);

impl Version {
    /// The version of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        use std::fmt::Write as _;
        let mut text = String::with_capacity(64);
        for byte in aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref() {
            // Writing to a String does not fail.
            let _ = write!(text, "{byte:02x}");
        }
        Self(text)
    }

    /// All 64 characters.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first twelve, for people.
    pub fn short(&self) -> &str {
        self.0.get(..12).unwrap_or(&self.0)
    }
}

impl From<String> for Version {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.short())
    }
}

/// The kinds of resource that the push carries. Each has a type URL of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ResourceKind {
    /// [`Manifest`]; one, named as the proxy's identity.
    Manifest,
    /// [`MeshState`]; one, named `mesh`.
    Mesh,
    /// [`TrustBundle`]; named as its trust domain.
    TrustBundle,
    /// [`WorkloadState`]; named as the workload, or the gateway, as `namespace/name`.
    Workload,
    /// [`InboundService`]; named `namespace/name`.
    Service,
    /// [`Destination`]; named `namespace/name`.
    Destination,
    /// [`AddressState`]; named as the address, `10.0.0.7:80` or `[fd00::7]:80`.
    Address,
    /// [`CertificateState`]; named `namespace/name` as the Secret that it was read from.
    Certificate,
    /// [`SecretState`]; named `namespace/name` as its `SecretGrant`.
    Secret,
}

impl ResourceKind {
    /// All kinds.
    pub const ALL: [Self; 9] = [
        Self::Manifest,
        Self::Mesh,
        Self::TrustBundle,
        Self::Workload,
        Self::Service,
        Self::Destination,
        Self::Address,
        Self::Certificate,
        Self::Secret,
    ];

    /// Those that came after the first release of the wire: a proxy says which of them it knows, and is told of no other.
    pub const LATER: [Self; 2] = [Self::Certificate, Self::Secret];

    /// The type URL in the delta stream.
    pub const fn type_url(self) -> &'static str {
        match self {
            Self::Manifest => "type.googleapis.com/merlon.v1.Manifest",
            Self::Mesh => "type.googleapis.com/merlon.v1.Mesh",
            Self::TrustBundle => "type.googleapis.com/merlon.v1.TrustBundle",
            Self::Workload => "type.googleapis.com/merlon.v1.Workload",
            Self::Service => "type.googleapis.com/merlon.v1.Service",
            Self::Destination => "type.googleapis.com/merlon.v1.Destination",
            Self::Address => "type.googleapis.com/merlon.v1.Address",
            Self::Certificate => "type.googleapis.com/merlon.v1.Certificate",
            Self::Secret => "type.googleapis.com/merlon.v1.Secret",
        }
    }

    /// The kind of a type URL.
    pub fn from_type_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == url)
    }
}

/// What names one resource of the push.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourceKey {
    /// Its kind.
    pub kind: ResourceKind,
    /// Its name within the kind.
    pub name: String,
}

impl fmt::Display for ResourceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}", self.kind, self.name)
    }
}

/// Names every resource of one proxy's state with its version: the state is consistent when all are there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// In order of key, so that equal states have equal bytes.
    pub entries: Vec<ManifestEntry>,
}

/// One resource of a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ManifestEntry {
    /// Which.
    #[serde(flatten)]
    pub key: ResourceKey,
    /// In which version.
    pub version: Version,
}

/// What holds for the whole mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MeshState {
    /// The own trust domain.
    pub trust_domain: TrustDomain,
    /// The namespace whose policies reach all others.
    pub root_namespace: Namespace,
    /// What happens to calls to destinations outside the mesh.
    #[serde(default)]
    pub outbound: OutboundMode,
    /// Whom gateways run as: what they say of where a request came from is believed.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub gateways: BTreeSet<SpiffeId>,
}

/// The roots of one trust domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrustBundle {
    /// Whose roots these are.
    pub trust_domain: TrustDomain,
    /// PEM certificates, self-signed CAs; never empty.
    pub roots: Vec<String>,
}

/// The proxy's own workload (a sidecar's) or Gateway (a gateway's).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadState {
    /// Whom it runs as.
    pub identity: SpiffeId,
    /// The Services whose requests come in here.
    #[serde(default)]
    pub services: Vec<ServiceName>,
    /// Where its program finds services, where nothing intercepts.
    #[serde(default)]
    pub outbound: Vec<OutboundListener>,
    /// Whether it also takes calls that are not mutual TLS.
    #[serde(default)]
    pub permissive: bool,
    /// What it gets of Vault, in order of name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<GrantedSecret>,
    /// What makes this proxy a gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<GatewayState>,
}

/// How a secret is delivered. Its content is a [`SecretState`] of the same name, which comes when it was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GrantedSecret {
    /// The `SecretGrant`, as `namespace/name`.
    pub name: ServiceName,
    /// Which secret, below the grant's namespace. A content that was read elsewhere is not what was granted.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// As files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<SecretFiles>,
    /// As headers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<SecretHeader>,
}

/// The listeners and routes of a gateway.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayState {
    /// The name under which policies know it: `Service::"<namespace>/<gateway>"`. It is also among
    /// [`WorkloadState::services`], so that its policies, limits and checks are an [`InboundService`] like any other.
    pub name: ServiceName,
    /// Where it listens.
    pub listeners: Vec<GatewayListener>,
    /// Its routes, each with the namespace it was written in. Of two that fit a request equally well, the first takes it.
    #[serde(default)]
    pub routes: Vec<GatewayRoute>,
}

/// A route of a gateway.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayRoute {
    /// As `namespace/name`.
    pub name: ServiceName,
    /// What it says; references are resolved within [`GatewayRoute::name`]'s namespace.
    pub spec: HttpRouteSpec,
}

/// A Service as the proxies of its own workloads enforce it (or a Gateway as its proxy does).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InboundService {
    /// Which.
    pub name: ServiceName,
    /// Its ports. Empty for a Gateway.
    #[serde(default)]
    pub ports: Vec<InboundPort>,
    /// `ServiceGroup`s that it is in.
    #[serde(default)]
    pub groups: Vec<String>,
    /// The Cedar documents that reach it, the root namespace's first.
    #[serde(default)]
    pub policies: Vec<PolicyDocument>,
    /// Members of each `WorkloadGroup` that these policies name.
    #[serde(default)]
    pub workload_groups: BTreeMap<String, Vec<WorkloadId>>,
    /// Claims and path parameters that these policies name and that only documents on other targets declare:
    /// a policy for the whole mesh may read a claim that this service's own issuers do not have.
    #[serde(default)]
    pub declared_elsewhere: DeclaredNames,
    /// Which tokens are accepted; none of them: no user, and tokens are left alone.
    #[serde(default)]
    pub authentication: Vec<Attached<RequestAuthenticationSpec>>,
    /// All must pass.
    #[serde(default)]
    pub limits: Vec<Attached<RateLimitRule>>,
    /// All must pass.
    #[serde(default)]
    pub validation: Vec<Attached<RequestValidationSpec>>,
}

/// Names that the policies' schema must know.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeclaredNames {
    /// `context.user.claims`, with their types.
    #[serde(default)]
    pub claims: BTreeMap<String, ClaimType>,
    /// `context.params`, in order.
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
    /// What is spoken.
    #[serde(default)]
    pub protocol: AppProtocol,
}

/// Something that was attached to a target, with the resource it came from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attached<T> {
    /// The resource, as `namespace/name`.
    pub from: ServiceName,
    /// What it says.
    pub spec: T,
}

/// One Cedar document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyDocument {
    /// The `AuthorizationPolicy`, as `namespace/name`: with a policy's `@id` it names a policy everywhere,
    /// as `shop/orders#read-own`.
    pub name: ServiceName,
    /// Where it was written, as `policies/orders.yaml:12:1`.
    #[serde(default)]
    pub origin: String,
    /// Cedar text.
    pub text: String,
}

/// A Service as its callers' proxies see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Destination {
    /// Which.
    pub name: ServiceName,
    /// Its ports.
    pub ports: Vec<DestinationPort>,
    /// Who serves it, in order of address.
    #[serde(default)]
    pub endpoints: Vec<Endpoint>,
}

/// A port of a destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DestinationPort {
    /// The port that callers use.
    pub port: u16,
    /// What is spoken.
    #[serde(default)]
    pub protocol: AppProtocol,
}

/// One proxy that serves a destination.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// Where its proxy accepts mesh TLS; in standalone mode without identities, where the program listens.
    pub address: SocketAddr,
    /// Whom the caller's proxy must find there. Absent only in standalone mode without identities: then plain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<SpiffeId>,
    /// The port to dial for each port of the Service, where connections to it are intercepted; a port that is not here
    /// is reached at `address`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<u16, u16>,
}

impl Endpoint {
    /// Where to dial for a port of the Service.
    pub fn dial(&self, port: u16) -> SocketAddr {
        match self.ports.get(&port) {
            Some(port) => SocketAddr::new(self.address.ip(), *port),
            None => self.address,
        }
    }

    /// Whether its program is called at this address, where connections to it are intercepted.
    pub fn is_at(&self, address: SocketAddr) -> bool {
        self.address.ip() == address.ip() && self.ports.values().any(|port| *port == address.port())
    }
}

/// The port on which a proxy takes what is intercepted on its way in.
pub const INBOUND_PORT: u16 = 7561;

/// What an address and port are, for the proxy of a program that connects to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum AddressState {
    /// A port of a Service. Its [`Destination`] is in the same state.
    Service {
        /// Which.
        service: ServiceName,
        /// Its port.
        port: u16,
        /// The one workload that was meant, by the first of its addresses, where one of them was called.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        workload: Option<IpAddr>,
        /// Other Services that this one workload serves on the same port, in order of name: what the caller was granted
        /// for one of them goes along.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        also: Vec<ServiceName>,
    },
    /// Somebody of the mesh is there, and serves nothing on this port: nothing may go there.
    Closed,
    /// Nobody of the mesh is there.
    Outside,
}

/// What a gateway's listener proves itself with. Told to the proxies of that gateway and to nobody else.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateState {
    /// The Secret that it was read from.
    pub name: ServiceName,
    /// PEM, the leaf first.
    pub chain: String,
    /// PEM: PKCS #8, PKCS #1 or SEC 1. Never shown.
    pub key: String,
}

impl fmt::Debug for CertificateState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateState")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// A secret's content. Told to the proxies of the workload that it is granted to, and to nobody else.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretState {
    /// The `SecretGrant`.
    pub name: ServiceName,
    /// Where it was read, below the grant's namespace.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// Its version in Vault.
    pub version: u64,
    /// Its keys. Never shown.
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

/// A policy's name everywhere: `shop/orders#read-own`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyName {
    /// The document.
    pub document: ServiceName,
    /// The `@id` in it.
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
