use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use url::Url;

use super::target::TargetRef;
use crate::{name::ResourceName, unit::HumanDuration};

/// Which bearer tokens (RFC 6750) are accepted: their issuers, audiences and signatures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestAuthenticationSpec {
    /// What it applies to. If omitted, the whole namespace.
    #[serde(default)]
    pub target_refs: Vec<TargetRef>,
    /// Issuers whose tokens are accepted. At least one.
    #[schemars(length(min = 1))]
    pub issuers: Vec<TokenIssuer>,
    /// Whether a request without a token is rejected with 401. Default: true.
    /// If false, the request continues without a user, and policies decide.
    #[serde(default = "yes")]
    pub required: bool,
    /// Whether the `Authorization` header is forwarded to the program. Default: false.
    #[serde(default)]
    pub forward_token: bool,
}

fn yes() -> bool {
    true
}

/// One issuer of tokens (OpenID Connect Discovery 1.0, RFC 7519, RFC 8725, RFC 9068).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TokenIssuer {
    /// The short name that policies use: `Issuer::"customers"`, `Group::"customers/admins"`.
    pub name: ResourceName,
    /// The exact value of `iss`; discovery is at `<issuer>/.well-known/openid-configuration`.
    /// `https`, or `http` to a loopback address.
    #[schemars(with = "Url")]
    pub issuer: String,
    /// URL of the issuer's JWKS, for issuers without discovery.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwks_uri: Option<Url>,
    /// PEM root certificates that verify the issuer's server certificate. If omitted, the system's roots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_certificates: Option<String>,
    /// One of these must be in `aud`. At least one.
    #[schemars(length(min = 1))]
    pub audiences: Vec<String>,
    /// Accepted signature algorithms. A key is used only with the algorithm that it is for. Default: ES256, RS256, PS256,
    /// EdDSA.
    #[serde(default = "usual_algorithms")]
    pub algorithms: Vec<SignatureAlgorithm>,
    /// Accepted values of the `typ` header, without `application/`. Default: `at+jwt` (RFC 9068 §4).
    #[serde(default = "access_token")]
    pub token_types: Vec<String>,
    /// Maximum difference between clocks. 0–5m, default 30s.
    #[serde(default = "half_a_minute")]
    pub clock_skew: HumanDuration,
    /// Claims that policies may read as `context.user.claims.<name>`, with their types.
    #[serde(default)]
    pub claims: BTreeMap<String, ClaimType>,
    /// The claim that holds the user's groups. Default: `groups`.
    #[serde(default = "groups")]
    pub groups_claim: String,
}

fn usual_algorithms() -> Vec<SignatureAlgorithm> {
    use SignatureAlgorithm::{ES256, EdDSA, PS256, RS256};
    vec![ES256, RS256, PS256, EdDSA]
}

fn access_token() -> Vec<String> {
    vec!["at+jwt".to_owned()]
}

fn half_a_minute() -> HumanDuration {
    HumanDuration(std::time::Duration::from_secs(30))
}

fn groups() -> String {
    "groups".to_owned()
}

/// The type of a declared claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ClaimType {
    /// A string.
    String,
    /// An integer.
    Long,
    /// True or false.
    Boolean,
    /// A list of strings.
    StringSet,
}

/// Signature algorithms of RFC 7518 §3.1 and RFC 8037. Symmetric algorithms and `none` are not supported.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[expect(missing_docs, reason = "the names are the registry's")]
pub enum SignatureAlgorithm {
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    EdDSA,
}
