//! Names of the objects that Merlon keeps in a cluster.

pub(crate) use merlon_inject::{AUDIENCE, PROXY_CONTAINER, TRUST_BUNDLE};

/// The Secret with the key of the embedded CA.
pub(crate) const CA: &str = "merlon-ca";

/// The Lease of the leader.
pub(crate) const LEASE: &str = "merlon-leader";

/// The label of the ConfigMap in which a replica publishes its counts.
pub(crate) const REPLICA_LABEL: &str = "merlon.io/replica";

/// The label of a ConfigMap with a deleted resource that stays in force.
pub(crate) const RETAINED_LABEL: &str = "merlon.io/retained";

/// The Service of the control plane.
pub(crate) const SERVICE: &str = "merlon-control-plane";

/// The field manager of everything that Merlon writes.
pub(crate) const FIELD_MANAGER: &str = "merlon-control-plane";

/// The label of an EndpointSlice with the name of its Service.
pub(crate) const SERVICE_LABEL: &str = "kubernetes.io/service-name";
