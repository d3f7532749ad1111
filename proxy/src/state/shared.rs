//! The state that all workers share.

use std::sync::Arc;

use merlon_certs::MeshTls;
use merlon_config::live::Live;
use tokio_util::sync::CancellationToken;

use super::{
    destinations::Destinations, jwks_cache::JwksCache, readiness::Readiness, snapshot::Snapshot,
};
use crate::{
    config::AccessLogMode,
    limits::Limits,
    protocol::address_claims::Claims,
    telemetry::{decision_log::DecisionLog, egress_log::EgressLog, spans::Spans},
};

/// Everything that a worker needs besides its own listeners. One per process, `Send` and `Sync`.
#[derive(Debug)]
pub struct Shared {
    /// The snapshot in force. `None`: every request is refused. A request loads it once with `load_full`;
    /// whatever outlives a request watches it and is re-evaluated on each change.
    pub snapshot: Live<Option<Arc<Snapshot>>>,
    /// The identity in force. `None` before the first certificate and after it expired: no mesh TLS connection is
    /// accepted or opened, and open ones are closed. Always `None` in standalone mode without identity.
    pub identity: Live<Option<Arc<MeshTls>>>,
    /// Whether this process is configured to have an identity. False only in standalone mode without one: the inbound
    /// listener then accepts plain connections, and every peer is anonymous.
    pub has_identity: bool,
    /// Whether connections come through interception rules. Only then plain text is accepted in a permissive namespace.
    pub interception: bool,
    /// Keys of token issuers.
    pub keys: JwksCache,
    /// Looks up destinations that the snapshot does not contain yet.
    pub destinations: Destinations,
    /// Recorded decisions with their facts.
    pub decisions: DecisionLog,
    /// Destinations outside the mesh that the local program called.
    pub egress: EgressLog,
    /// Receives finished spans; costs nothing without a collector.
    pub spans: Spans,
    /// Addresses of the snapshot's listeners. Each worker has its own socket for each address.
    pub listeners: Claims,
    /// Readiness of the process, with reasons.
    pub readiness: Readiness,
    /// Requests in the access log.
    pub access_log: AccessLogMode,
    /// Bounds and time limits.
    pub limits: Limits,
}

/// The two phases of the shutdown.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shutdown {
    /// Stop accepting, send GOAWAY and `Connection: close`, let open requests finish, then return.
    pub drain: CancellationToken,
    /// The drain timeout has passed: return now.
    pub end: CancellationToken,
}
