//! Names of labels, annotations, containers and objects that other crates use, too.

/// The label that enables injection for a namespace (`enabled`) or disables it for a pod (`disabled`).
pub const INJECT: &str = "merlon.io/inject";
/// The label of every pod with a sidecar. Its value is `true`.
pub const MESHED: &str = "merlon.io/meshed";
/// The annotation with the hash of the settings that a pod was injected with.
pub const INJECTED: &str = "merlon.io/injected";
/// The init container that installs the interception rules.
pub const INTERCEPT_CONTAINER: &str = "merlon-init";
/// The sidecar's container.
pub const PROXY_CONTAINER: &str = "merlon-proxy";

/// The ConfigMap with the mesh's trust bundle, in every namespace.
pub const TRUST_BUNDLE: &str = "merlon-trust-bundle";
/// The audience of a pod's token.
pub const AUDIENCE: &str = "merlon";
