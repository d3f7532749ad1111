//! The metrics of one worker.

use super::{
    counter::{Counter, Counters, Counters2, Gauges, Histograms, ReasonCounters},
    label::{CacheResult, Direction, FetchResult, Handshake, StatusClass, Transport, Way},
};

/// Counters of one worker.
#[derive(Debug, Default)]
pub struct WorkerMetrics {
    /// Finished requests.
    pub requests: Counters2<Direction, StatusClass>,
    /// Requests and connections that Merlon refused.
    pub refusals: ReasonCounters,
    /// From the end of the request head to the end of the response body.
    pub durations: Histograms<Direction>,
    /// Requests in flight.
    pub active_requests: Gauges<Direction>,
    /// Accepted connections (inbound, outbound, gateway).
    pub connections: Counters2<Direction, Transport>,
    /// Open connections.
    pub open_connections: Gauges<Direction>,
    /// Mesh and gateway TLS handshakes, both as server (inbound, gateway) and as client (outbound).
    pub handshakes: Counters2<Direction, Handshake>,
    /// Bytes of bodies and opaque connections.
    pub traffic: Counters2<Direction, Way>,
    /// Tokens that were found in the cache (hit) or verified (miss).
    pub token_cache: Counters<CacheResult>,
    /// Connections to upstreams: opened or failed.
    pub upstream_connections: Counters<FetchResult>,
    /// Failures of `accept`, for example too many open files, and connections beyond the limit.
    pub accept_errors: Counter,
    /// Lines of the access log that were dropped because its writer could not keep up.
    pub access_log_dropped: Counter,
}
