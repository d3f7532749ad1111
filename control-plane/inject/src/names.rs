//! Labels, annotations and containers by which others recognise the sidecar.

/// The label by which a namespace asks for sidecars (`enabled`), and a pod in it declines (`disabled`).
pub const INJECT: &str = "merlon.io/inject";
/// The label that every pod with a sidecar bears, with the value `true`.
pub const MESHED: &str = "merlon.io/meshed";
/// The annotation that says by which settings a pod was injected.
pub const INJECTED: &str = "merlon.io/injected";
/// The container that lays down the rules of interception.
pub const INTERCEPT_CONTAINER: &str = "merlon-init";
/// The container of the sidecar.
pub const PROXY_CONTAINER: &str = "merlon-proxy";

/// The ConfigMap with the mesh's roots, in every namespace.
pub const TRUST_BUNDLE: &str = "merlon-trust-bundle";
/// For whom a pod's token must be.
pub const AUDIENCE: &str = "merlon";
