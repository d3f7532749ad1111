//! The kinds of Gateway API that are watched.

use kube::api::ApiResource;

pub(crate) const GROUP: &str = "gateway.networking.k8s.io";

/// A kind of Gateway API that is watched: kind, plural, version.
pub(crate) const KINDS: [(&str, &str, &str); 4] = [
    ("GatewayClass", "gatewayclasses", "v1"),
    ("Gateway", "gateways", "v1"),
    ("HTTPRoute", "httproutes", "v1"),
    // The version that every release of Gateway API serves.
    ("ReferenceGrant", "referencegrants", "v1beta1"),
];

/// The API resource of a kind.
pub(crate) fn resource_of((kind, plural, version): (&str, &str, &str)) -> ApiResource {
    ApiResource {
        group: GROUP.to_owned(),
        version: version.to_owned(),
        api_version: format!("{}/{version}", GROUP),
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    }
}
