use std::{collections::BTreeSet, num::NonZeroU32, path::PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::{
    name::{Namespace, TrustDomain},
    unit::HumanDuration,
};

/// Settings of the whole mesh. There is exactly one, in the root namespace.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeshConfigSpec {
    /// The trust domain of every identity.
    pub trust_domain: TrustDomain,
    /// The namespace whose policies may apply to all namespaces. Default: `merlon-system`.
    #[serde(default = "root_namespace")]
    pub root_namespace: Namespace,
    /// How identities are issued.
    #[serde(default)]
    pub certificates: Certificates,
    /// What happens to connections to destinations outside the mesh. Default: `observe`.
    #[serde(default)]
    pub outbound: OutboundMode,
    /// Namespaces whose workloads also accept connections without mutual TLS, while their callers are moved into the mesh.
    /// These connections are counted, and their callers are `Anonymous` in policies. Only effective where connections are
    /// intercepted.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub permissive_namespaces: BTreeSet<Namespace>,
    /// In a cluster, how many policies each namespace other than the root namespace may have: those in the text of its
    /// AuthorizationPolicies, and one for every other resource of Merlon. Each 4 KiB of a resource count as one at least.
    /// Default: 2000. At least 1. A resource that does not
    /// fit is `Accepted=False`, reason `TooMany`.
    #[serde(
        default = "policies_per_namespace",
        skip_serializing_if = "is_default_share"
    )]
    pub policies_per_namespace: NonZeroU32,
}

impl MeshConfigSpec {
    /// The default of [`MeshConfigSpec::policies_per_namespace`].
    pub const POLICIES_PER_NAMESPACE: NonZeroU32 = NonZeroU32::new(2_000).unwrap();
}

fn policies_per_namespace() -> NonZeroU32 {
    MeshConfigSpec::POLICIES_PER_NAMESPACE
}

fn is_default_share(share: &NonZeroU32) -> bool {
    *share == MeshConfigSpec::POLICIES_PER_NAMESPACE
}

fn root_namespace() -> Namespace {
    #[expect(clippy::expect_used, reason = "a constant that a test parses")]
    "merlon-system".parse().expect("a valid namespace")
}

/// How identities are issued.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Certificates {
    /// Lifetime of a workload's certificate. From 30s (below 5m with a warning) to 7 days; default 24h.
    pub lifetime: HumanDuration,
    /// The CA that signs certificates. Default: the embedded CA, which is for development.
    pub issuer: CertificateIssuer,
}

impl Default for Certificates {
    fn default() -> Self {
        Self {
            lifetime: HumanDuration(std::time::Duration::from_secs(24 * 3_600)),
            issuer: CertificateIssuer::default(),
        }
    }
}

/// The CA that signs workload certificates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum CertificateIssuer {
    /// A root key in the control plane's state directory: for development.
    Embedded(EmbeddedIssuer),
    /// Vault or OpenBao signs every leaf certificate.
    Vault(Box<VaultIssuer>),
}

impl Default for CertificateIssuer {
    fn default() -> Self {
        Self::Embedded(EmbeddedIssuer::default())
    }
}

/// The embedded CA.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EmbeddedIssuer {}

/// Vault or OpenBao with the PKI engine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VaultIssuer {
    /// Vault's address. `https`, or `http` to a loopback address.
    pub address: Url,
    /// PEM file with root certificates that verify Vault's server certificate. If omitted, the system's roots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// A file that holds the token. It is read again when Vault rejects the token. If omitted, the environment variable
    /// `VAULT_TOKEN`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// Instead of `tokenFile`: the control plane logs in as its own service account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes_auth: Option<Box<KubernetesAuth>>,
    /// Mount that signs leaf certificates. Default: `pki-int`.
    #[serde(default = "pki_mount")]
    pub pki_mount: String,
    /// Mount that holds the root certificates. Default: `pki-root`.
    #[serde(default = "root_mount")]
    pub root_mount: String,
    /// Role to sign with. Default: `svid`.
    #[serde(default = "role")]
    pub role: String,
    /// Mount of the KV engine, version 2, that holds the secrets of `SecretGrant`s. Default: `secret`.
    #[serde(default = "kv_mount", skip_serializing_if = "is_kv_mount")]
    pub kv_mount: String,
    /// Path in `kvMount` that holds the secrets, before the namespace. Default: `merlon`.
    #[serde(default = "kv_prefix", skip_serializing_if = "is_kv_prefix")]
    pub kv_prefix: String,
}

/// A login with Vault's Kubernetes auth method.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct KubernetesAuth {
    /// Where the method is mounted, below `auth/`. Default: `kubernetes`.
    pub mount: String,
    /// The role to log in to. Default: `merlon-control-plane`.
    pub role: String,
    /// A file that holds the pod's projected token, with the audience that the role requires. It is read at each login.
    /// Default: `/var/run/secrets/merlon/vault-token`.
    pub token_file: PathBuf,
}

impl Default for KubernetesAuth {
    fn default() -> Self {
        Self {
            mount: "kubernetes".to_owned(),
            role: "merlon-control-plane".to_owned(),
            token_file: "/var/run/secrets/merlon/vault-token".into(),
        }
    }
}

fn pki_mount() -> String {
    "pki-int".to_owned()
}

fn root_mount() -> String {
    "pki-root".to_owned()
}

fn kv_mount() -> String {
    "secret".to_owned()
}

fn is_kv_mount(mount: &str) -> bool {
    mount == kv_mount()
}

fn kv_prefix() -> String {
    "merlon".to_owned()
}

fn is_kv_prefix(prefix: &str) -> bool {
    prefix == kv_prefix()
}

fn role() -> String {
    "svid".to_owned()
}

/// What happens to connections to destinations that no resource describes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum OutboundMode {
    /// They are forwarded and recorded.
    #[default]
    Observe,
    /// They are refused.
    Deny,
}
