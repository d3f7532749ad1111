//! The names that every test mesh uses.

use merlon_config::name::SpiffeId;

/// The default namespace of resources.
pub const NAMESPACE: &str = "shop";
/// The trust domain of every test mesh.
pub const TRUST_DOMAIN: &str = "mesh.test";

/// Namespace and name of `bank/ledger`. A name alone is in [`NAMESPACE`].
pub(crate) fn split(workload: &str) -> (&str, &str) {
    workload.split_once('/').unwrap_or((NAMESPACE, workload))
}

/// The SPIFFE ID of `bank/ledger`, or of a workload of [`NAMESPACE`], as text.
pub fn identity(workload: &str) -> String {
    let (namespace, account) = split(workload);
    format!("spiffe://{TRUST_DOMAIN}/ns/{namespace}/sa/{account}")
}

/// The SPIFFE ID of `bank/ledger`, or of a workload of [`NAMESPACE`].
pub fn spiffe_id(workload: &str) -> SpiffeId {
    identity(workload).parse().expect("a SPIFFE ID")
}
