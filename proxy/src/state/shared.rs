//! What all workers share.

use std::sync::Arc;

use merlon_certs::MeshTls;
use merlon_config::live::Live;
use tokio_util::sync::CancellationToken;

use super::{
    destinations::Destinations, jwks_cache::JwksCache, readiness::Readiness, snapshot::Snapshot,
};
use crate::{
    config::AccessLogMode,
    protocol::address_claims::Claims,
    telemetry::{decision_log::DecisionLog, egress_log::EgressLog, spans::Spans},
};

/// Everything a worker needs beside its own listeners. One per process, `Send` and `Sync`.
#[derive(Debug)]
pub struct Shared {
    /// The state in force. `None`: cold, refuse everything. A request takes it once with `load_full`;
    /// whatever outlives a request watches it and is decided again.
    pub snapshot: Live<Option<Arc<Snapshot>>>,
    /// The identity in force. `None`: none yet, or expired: accept nothing and dial nobody over mesh TLS, and close
    /// what is open when it becomes so. Always `None` in standalone mode without identity.
    pub identity: Live<Option<Arc<MeshTls>>>,
    /// Whether this process is meant to have an identity. False only in standalone mode without one: the inbound
    /// listener then takes plain connections, and every peer is anonymous.
    pub has_identity: bool,
    /// Keys of token issuers.
    pub keys: JwksCache,
    /// Asks for destinations that the snapshot does not have yet.
    pub destinations: Destinations,
    /// Recorded facts of decisions.
    pub decisions: DecisionLog,
    /// What the own program called outside the mesh.
    pub egress: EgressLog,
    /// Finished spans go here; costs nothing when no collector is configured.
    pub spans: Spans,
    /// Addresses of the snapshot's listeners, of which each worker has its socket.
    pub listeners: Claims,
    /// Whether the process is ready, and why not.
    pub readiness: Readiness,
    /// Which requests are logged.
    pub access_log: AccessLogMode,
}

/// The two steps of the end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shutdown {
    /// Stop accepting, send GOAWAY and `Connection: close`, let open requests finish, then return.
    pub drain: CancellationToken,
    /// The drain timeout is over: return now.
    pub end: CancellationToken,
}
