//! Names of the objects that Merlon keeps in a cluster.

/// The container that makes a pod a workload of the mesh.
pub(crate) const PROXY_CONTAINER: &str = "merlon-proxy";

/// The ConfigMap with the mesh's roots, in every namespace.
pub(crate) const TRUST_BUNDLE: &str = "merlon-trust-bundle";

/// The Secret with the key of the embedded CA.
pub(crate) const CA: &str = "merlon-ca";

/// The Lease of the leader.
pub(crate) const LEASE: &str = "merlon-leader";

/// On the ConfigMap in which a replica tells what it counts.
pub(crate) const REPLICA_LABEL: &str = "merlon.io/replica";

/// Who owns the fields that we write.
pub(crate) const FIELD_MANAGER: &str = "merlon-control-plane";

/// For whom a pod's token must be.
pub(crate) const AUDIENCE: &str = "merlon";
