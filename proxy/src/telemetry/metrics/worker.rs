//! The metrics that one worker counts.

use super::{
    counter::{Counter, Counters, Counters2, Gauges, Histograms, ReasonCounters},
    label::{CacheResult, Direction, FetchResult, Handshake, StatusClass, Transport, Way},
};

/// One worker's counters.
#[derive(Debug, Default)]
pub struct WorkerMetrics {
    /// Finished requests.
    pub requests: Counters2<Direction, StatusClass>,
    /// Requests and connections that Merlon itself refused.
    pub refusals: ReasonCounters,
    /// From the head's last byte to the end of the answer's body.
    pub durations: Histograms<Direction>,
    /// Requests being answered now.
    pub active_requests: Gauges<Direction>,
    /// Connections accepted (inbound, outbound, gateway).
    pub connections: Counters2<Direction, Transport>,
    /// Connections open now.
    pub open_connections: Gauges<Direction>,
    /// Mesh and gateway TLS handshakes, both as server (inbound, gateway) and as client (outbound).
    pub handshakes: Counters2<Direction, Handshake>,
    /// Bytes of bodies and opaque connections.
    pub traffic: Counters2<Direction, Way>,
    /// Verified tokens found in the cache, or verified anew.
    pub token_cache: Counters<CacheResult>,
    /// Connections to upstreams: opened or failed.
    pub upstream_connections: Counters<FetchResult>,
    /// `accept` failed (too many open files, for one): accepting paused a moment.
    pub accept_errors: Counter,
}
