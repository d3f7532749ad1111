//! The names that every test mesh uses.

use merlon_config::name::SpiffeId;

/// The default namespace of resources.
pub const NAMESPACE: &str = "shop";
/// The trust domain of every test mesh.
pub const TRUST_DOMAIN: &str = "mesh.test";

/// The SPIFFE ID of a workload of [`NAMESPACE`], as text.
pub fn identity(workload: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}/ns/{NAMESPACE}/sa/{workload}")
}

/// The SPIFFE ID of a workload of [`NAMESPACE`].
pub fn spiffe_id(workload: &str) -> SpiffeId {
    identity(workload).parse().expect("a SPIFFE ID")
}
