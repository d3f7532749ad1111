//! Gateway API of a cluster: what is read of it ([`attach()`]), and what is said of it ([`report`]).

mod api;
mod attach;
mod report;
mod route;

use kube::api::ApiResource;

pub(crate) use self::{
    attach::{Attached, GATEWAY_LABEL, Seen, attach, is_of_a_gateway},
    report::{Report, Says},
};

/// The class as files name it; in a cluster any class of our controller is ours.
const CLASS: &str = "merlon";

/// A kind of Gateway API that is watched: kind, plural, version.
pub(crate) const KINDS: [(&str, &str, &str); 4] = [
    ("GatewayClass", "gatewayclasses", "v1"),
    ("Gateway", "gateways", "v1"),
    ("HTTPRoute", "httproutes", "v1"),
    // The version that every release of Gateway API serves.
    ("ReferenceGrant", "referencegrants", "v1beta1"),
];

/// How a kind is asked for.
pub(crate) fn resource_of((kind, plural, version): (&str, &str, &str)) -> ApiResource {
    ApiResource {
        group: api::GROUP.to_owned(),
        version: version.to_owned(),
        api_version: format!("{}/{version}", api::GROUP),
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    }
}
