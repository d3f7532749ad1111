//! Names of the objects that Merlon keeps in a cluster.

pub(crate) use merlon_inject::{AUDIENCE, PROXY_CONTAINER, TRUST_BUNDLE};

/// The Secret with the key of the embedded CA.
pub(crate) const CA: &str = "merlon-ca";

/// The Lease of the leader.
pub(crate) const LEASE: &str = "merlon-leader";

/// On the ConfigMap in which a replica tells what it counts.
pub(crate) const REPLICA_LABEL: &str = "merlon.io/replica";

/// Who owns the fields that we write.
pub(crate) const FIELD_MANAGER: &str = "merlon-control-plane";
