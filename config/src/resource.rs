//! The resources: what stands in YAML documents, as files or as custom resources, the very same text.
//!
//! Every kind is one file here. Unknown fields are errors. All of `spec` is plain data; what it means together
//! with other resources is `merlon-compile`'s matter.

mod authentication;
mod authorization;
mod gateway;
mod mesh;
mod rate_limit;
mod secret_grant;
mod service;
mod target;
mod validation;
mod workload;

pub use authentication::{ClaimType, RequestAuthenticationSpec, SignatureAlgorithm, TokenIssuer};
pub use authorization::AuthorizationPolicySpec;
pub use gateway::{
    BackendRef, CertificateRef, GatewayListener, GatewaySpec, HeaderMatch, HttpPathMatch,
    HttpRouteMatch, HttpRouteRule, HttpRouteSpec, ListenerTls, ParentRef, PathMatchType,
};
pub use mesh::{
    CertificateIssuer, Certificates, EmbeddedIssuer, KubernetesAuth, MeshConfigSpec, OutboundMode,
    VaultIssuer,
};
pub use rate_limit::{LimitKey, Rate, RateLimitRule, RateLimitSpec};
pub use secret_grant::{SecretFiles, SecretGrantSpec, SecretHeader};
pub use service::{AppProtocol, ServicePort, ServiceSpec};
pub use target::{TargetKind, TargetRef};
pub use validation::{RequestLimits, RequestValidationSpec, RouteRule, UnknownRoutes};
pub use workload::{OutboundListener, WorkloadSpec};

use crate::name::{Namespace, ResourceName};

/// A resource of any kind with its name and where it was written.
#[derive(Debug, Clone, PartialEq)]
pub struct Resource {
    /// Where it lives. Resources that name no namespace are in `default`.
    pub namespace: Namespace,
    /// Its name, unique within kind and namespace.
    pub name: ResourceName,
    /// `metadata.labels`.
    pub labels: std::collections::BTreeMap<String, String>,
    /// When a cluster says that it came to be, in seconds since 1970. Where resources are files, nobody knows.
    pub created: Option<i64>,
    /// What it says.
    pub spec: Spec,
    /// Where it says so, as `policies/orders.yaml:12:1`.
    pub origin: String,
}

/// What a resource says, by kind.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "each variant is the kind of its content")]
pub enum Spec {
    MeshConfig(MeshConfigSpec),
    Workload(WorkloadSpec),
    Service(ServiceSpec),
    AuthorizationPolicy(AuthorizationPolicySpec),
    RequestAuthentication(RequestAuthenticationSpec),
    RateLimit(RateLimitSpec),
    RequestValidation(RequestValidationSpec),
    SecretGrant(SecretGrantSpec),
    Gateway(GatewaySpec),
    HttpRoute(HttpRouteSpec),
}

/// `apiVersion` of Merlon's own kinds.
pub const MERLON: &str = "merlon.io/v1alpha1";

/// `apiVersion` of the kinds that are Gateway API's.
pub const GATEWAY_API: &str = "gateway.networking.k8s.io/v1";

/// Every kind with its `apiVersion`.
pub const KINDS: [(&str, &str); 10] = [
    (MERLON, "MeshConfig"),
    (MERLON, "Workload"),
    (MERLON, "Service"),
    (MERLON, "AuthorizationPolicy"),
    (MERLON, "RequestAuthentication"),
    (MERLON, "RateLimit"),
    (MERLON, "RequestValidation"),
    (MERLON, "SecretGrant"),
    (GATEWAY_API, "Gateway"),
    (GATEWAY_API, "HTTPRoute"),
];

impl Spec {
    /// What a policy is attached to; empty: its whole namespace. `None` for what is no policy.
    pub fn target_refs(&self) -> Option<&[TargetRef]> {
        match self {
            Self::AuthorizationPolicy(spec) => Some(&spec.target_refs),
            Self::RequestAuthentication(spec) => Some(&spec.target_refs),
            Self::RateLimit(spec) => Some(&spec.target_refs),
            Self::RequestValidation(spec) => Some(&spec.target_refs),
            Self::MeshConfig(_)
            | Self::Workload(_)
            | Self::Service(_)
            | Self::SecretGrant(_)
            | Self::Gateway(_)
            | Self::HttpRoute(_) => None,
        }
    }

    /// The kind as it is written.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::MeshConfig(_) => "MeshConfig",
            Self::Workload(_) => "Workload",
            Self::Service(_) => "Service",
            Self::AuthorizationPolicy(_) => "AuthorizationPolicy",
            Self::RequestAuthentication(_) => "RequestAuthentication",
            Self::RateLimit(_) => "RateLimit",
            Self::RequestValidation(_) => "RequestValidation",
            Self::SecretGrant(_) => "SecretGrant",
            Self::Gateway(_) => "Gateway",
            Self::HttpRoute(_) => "HTTPRoute",
        }
    }
}
