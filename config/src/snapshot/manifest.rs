//! The content-hashed resources of the push, and the manifest that lists them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// SHA-256 of the bytes of a resource or manifest, in lower-case hexadecimal.
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

    /// The first 12 characters, for display.
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

/// The kinds of resource that the push transfers. Each has its own type URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ResourceKind {
    /// [`Manifest`]; one, named after the proxy's identity.
    Manifest,
    /// [`MeshState`](super::MeshState); one, named `mesh`.
    Mesh,
    /// [`TrustBundle`](super::TrustBundle); named after its trust domain.
    TrustBundle,
    /// [`WorkloadState`](super::WorkloadState); named `namespace/name` after the workload or gateway.
    Workload,
    /// [`InboundService`](super::InboundService); named `namespace/name`.
    Service,
    /// [`Destination`](super::Destination); named `namespace/name`.
    Destination,
    /// [`AddressState`](super::AddressState); named after the address, `10.0.0.7:80` or `[fd00::7]:80`.
    Address,
    /// [`CertificateState`](super::CertificateState); named `namespace/name` after its Secret.
    Certificate,
    /// [`SecretState`](super::SecretState); named `namespace/name` after its `SecretGrant`.
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

    /// Kinds that were added after the first version of the protocol. A proxy announces which of them it supports and
    /// receives no others.
    pub const NEGOTIATED: [Self; 2] = [Self::Certificate, Self::Secret];

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

/// Identifies one resource of the push.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourceKey {
    /// The kind.
    pub kind: ResourceKind,
    /// The name, unique within the kind.
    pub name: String,
}

impl fmt::Display for ResourceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}", self.kind, self.name)
    }
}

/// Lists every resource of one proxy's state with its version. The state is consistent when all of them are present.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Sorted by key, so that equal states have equal bytes.
    pub entries: Vec<ManifestEntry>,
}

/// One resource of a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ManifestEntry {
    /// The resource.
    #[serde(flatten)]
    pub key: ResourceKey,
    /// Its version.
    pub version: Version,
}
