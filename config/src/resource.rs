//! The resources. Files and custom resources hold the same YAML documents.
//!
//! Each kind has one file here. Unknown fields are errors. `spec` is plain data; `merlon-compile` combines it with other
//! resources.

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
    /// The namespace. Resources without one are in `default`.
    pub namespace: Namespace,
    /// The name, unique within kind and namespace.
    pub name: ResourceName,
    /// `metadata.labels`.
    pub labels: std::collections::BTreeMap<String, String>,
    /// When the cluster created it, in seconds since 1970. `None` for resources from files.
    pub created: Option<i64>,
    /// The content.
    pub spec: Spec,
    /// Where it is defined, for example `policies/orders.yaml:12:1`.
    pub origin: String,
}

/// The `spec` of a resource, by kind.
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

/// `apiVersion` of the Gateway API kinds.
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
    /// The targets of a policy. Empty: its whole namespace. `None` for kinds that are not policies.
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
