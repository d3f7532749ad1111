//! The bounds and time limits of a proxy as values, so that a test of a bound uses a small one.
//!
//! What a message may contain (sizes of target, head, trailers and chunk extensions) is not here: those are constants of
//! the parsers in `protocol/http1/`, and cost a test nothing.

use std::time::Duration;

use merlon_config::unit::HumanDuration;
use serde::{Deserialize, Deserializer};

/// Bounds and time limits of one process. They are fixed for its life: each user copies what it needs, or reads it from
/// the state that workers share.
///
/// No setting changes them. Tests construct other values, or pass them to a debug build with `--test-limits FILE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Limits {
    // README, "The life of a request", row "accept".
    /// Open connections per worker. More are closed as soon as they are accepted. Default: 10,000.
    pub connections: usize,
    /// How long accepting pauses when the system lacks descriptors or memory. Default: 100 ms.
    #[serde(deserialize_with = "duration")]
    pub accept_pause: Duration,

    // Row "handshake".
    /// TLS handshakes at the same time, per worker. More connections are closed. Default: 512.
    pub handshakes: usize,
    /// From the start of a TLS handshake to its end, as a server. Default: 5 s.
    #[serde(deserialize_with = "duration")]
    pub handshake_timeout: Duration,

    // Row "in flight".
    /// Requests per worker whose response has not started. More are refused with 503 `overload`. Default: 4,096.
    pub in_flight: usize,

    // Row "authenticate".
    /// Verified tokens that a worker remembers. Default: 4,096.
    pub cached_tokens: usize,

    // Row "validate".
    /// From the admission of a request to the last byte of a body that is buffered. Default: 30 s.
    #[serde(deserialize_with = "duration")]
    pub body_timeout: Duration,

    // README, "Limits": connections from clients and other proxies.
    /// From the first byte of an HTTP/1 head to its last. Default: 10 s.
    #[serde(deserialize_with = "duration")]
    pub head_timeout: Duration,
    /// How long a connection may be without a request, and without its first bytes. Default: 60 s.
    #[serde(deserialize_with = "duration")]
    pub idle_timeout: Duration,
    /// Streams that a peer may have open on an HTTP/2 connection. Default: 100.
    pub h2_streams: u32,
    /// Flow-control window of an HTTP/2 stream, in bytes. Default: 256 KiB.
    pub h2_stream_window: u32,
    /// Flow-control window of an HTTP/2 connection, in bytes. Default: 4 MiB.
    pub h2_connection_window: u32,
    /// Streams that a peer has reset and that are not yet accepted; one more ends the connection. Default: 20.
    pub h2_pending_resets: usize,
    /// Streams that the proxy had to reset because of the peer's errors; one more ends the connection. Default: 200.
    pub h2_forced_resets: usize,
    /// PING, SETTINGS and PRIORITY frames per [`Limits::h2_frame_window`]; one more ends the connection. Default: 1,000.
    pub h2_control_frames: u32,
    /// RST_STREAM frames per [`Limits::h2_frame_window`]; one more ends the connection. A busy peer whose callers cancel
    /// requests sends some. Default: 4,000.
    pub h2_reset_frames: u32,
    /// The time in which frames are counted. Default: 10 s.
    #[serde(deserialize_with = "duration")]
    pub h2_frame_window: Duration,

    // "The life of a request", opaque bytes, and "Interception".
    /// From the end of the handshake of a TCP tunnel to the end of its preamble. Default: 5 s.
    #[serde(deserialize_with = "duration")]
    pub preamble_timeout: Duration,
    /// How long a plain-text connection in a permissive namespace may be silent. After it, a connection to a port of
    /// opaque TCP counts as one in which the server speaks first; any other is closed. Default: 5 s.
    #[serde(deserialize_with = "duration")]
    pub first_byte_timeout: Duration,
    /// How long a request or connection waits for the lookup of a destination. Default: 3 s.
    #[serde(deserialize_with = "duration")]
    pub lookup_timeout: Duration,

    // "Limits": connections to upstreams.
    /// From the start of a TCP connection to its end, before another endpoint is tried. Default: 1 s.
    #[serde(deserialize_with = "duration")]
    pub connect_timeout: Duration,
    /// From the start of a TLS handshake to its end, as a client. Default: 5 s.
    #[serde(deserialize_with = "duration")]
    pub upstream_handshake_timeout: Duration,
    /// How long an endpoint is skipped after connecting to it failed. Default: 5 s.
    #[serde(deserialize_with = "duration")]
    pub failure_cooldown: Duration,
    /// How long an upstream connection may be idle. Shorter than [`Limits::idle_timeout`], so that a peer does not close
    /// it just when it is used. Default: 55 s.
    #[serde(deserialize_with = "duration")]
    pub upstream_idle_timeout: Duration,
    /// Idle HTTP/1 connections to one address, per worker. More are closed after their response. Default: 256.
    pub upstream_idle_connections: usize,
    /// Streams on one connection before another is opened. Merlon's proxies accept as many. Default: 100.
    pub upstream_streams: usize,
    /// How long an HTTP/2 connection to an upstream may be silent before it is pinged, and how long the reply may take.
    /// Default: 10 s.
    #[serde(deserialize_with = "duration")]
    pub upstream_keep_alive: Duration,
    /// How often a worker closes idle upstream connections and forgets expired tokens. Default: 10 s.
    #[serde(deserialize_with = "duration")]
    pub tidy_interval: Duration,

    // "Refusals", "The access log" and "Administration".
    /// Permits per second and worker whose facts are recorded. Default: 50.
    pub recorded_permits: u32,
    /// Requests of a process whose decisions are kept, if they were recorded. Default: 4,096.
    pub decisions: usize,
    /// Blocks of lines that wait for the writer of the access log; more are dropped. Default: 256.
    pub access_log_queue: usize,
    /// How long a process that ends waits for the writer of the access log. Default: 1 s.
    #[serde(deserialize_with = "duration")]
    pub access_log_exit: Duration,

    // "Behaviour without a dependency".
    /// How long what waits for a time of day (the renewal of the certificate, a fetch of keys) may go without a look at the
    /// clock, which may jump. Default: 60 s.
    #[serde(deserialize_with = "duration")]
    pub clock_check: Duration,
    /// The shortest wait after a request for a certificate that failed, or whose certificate is due for renewal at once. It
    /// doubles up to 5 minutes, or up to a 20th of the certificate's lifetime. Default: 1 s.
    #[serde(deserialize_with = "duration")]
    pub certificate_retry: Duration,

    // Keys of token issuers.
    /// From the start of a request to an issuer to the end of the response. Default: 5 s.
    #[serde(deserialize_with = "duration")]
    pub jwks_timeout: Duration,
    /// How long keys are used without a successful fetch. Default: 24 h.
    #[serde(deserialize_with = "duration")]
    pub jwks_last_good: Duration,
    /// The shortest time from one successful fetch to the next, for any `max-age` of the issuer. Default: 5 min.
    #[serde(deserialize_with = "duration")]
    pub jwks_refresh: Duration,
    /// From a failed fetch to the next, while there are keys. Default: 30 s.
    #[serde(deserialize_with = "duration")]
    pub jwks_retry: Duration,
    /// One unknown key causes at most one fetch in this time. Default: 30 s.
    #[serde(deserialize_with = "duration")]
    pub jwks_same_key: Duration,
    /// All unknown keys of an issuer together cause at most one fetch in this time. It is short, since a client can use
    /// it up with invented names, and a key that is really new may be refused for this long. Default: 5 s.
    #[serde(deserialize_with = "duration")]
    pub jwks_any_key: Duration,
    /// How long a request waits for a fetch of keys. Default: 6 s, more than [`Limits::jwks_timeout`].
    #[serde(deserialize_with = "duration")]
    pub jwks_wait: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            accept_pause: Duration::from_millis(100),
            handshakes: 512,
            handshake_timeout: Duration::from_secs(5),
            in_flight: 4_096,
            cached_tokens: 4_096,
            body_timeout: Duration::from_secs(30),
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            h2_streams: 100,
            h2_stream_window: 256 << 10,
            h2_connection_window: 4 << 20,
            h2_pending_resets: 20,
            h2_forced_resets: 200,
            h2_control_frames: 1_000,
            h2_reset_frames: 4_000,
            h2_frame_window: Duration::from_secs(10),
            preamble_timeout: Duration::from_secs(5),
            first_byte_timeout: Duration::from_secs(5),
            lookup_timeout: Duration::from_secs(3),
            connect_timeout: Duration::from_secs(1),
            upstream_handshake_timeout: Duration::from_secs(5),
            failure_cooldown: Duration::from_secs(5),
            upstream_idle_timeout: Duration::from_secs(55),
            upstream_idle_connections: 256,
            upstream_streams: 100,
            upstream_keep_alive: Duration::from_secs(10),
            tidy_interval: Duration::from_secs(10),
            recorded_permits: 50,
            decisions: 4_096,
            access_log_queue: 256,
            access_log_exit: Duration::from_secs(1),
            clock_check: Duration::from_secs(60),
            certificate_retry: Duration::from_secs(1),
            jwks_timeout: Duration::from_secs(5),
            jwks_last_good: Duration::from_secs(24 * 3_600),
            jwks_refresh: Duration::from_secs(5 * 60),
            jwks_retry: Duration::from_secs(30),
            jwks_same_key: Duration::from_secs(30),
            jwks_any_key: Duration::from_secs(5),
            jwks_wait: Duration::from_secs(6),
        }
    }
}

/// A duration in the form of the configuration, such as `200ms`.
fn duration<'de, D: Deserializer<'de>>(text: D) -> Result<Duration, D::Error> {
    HumanDuration::deserialize(text).map(|HumanDuration(time)| time)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rows of the README's table of limits, without footnotes.
    fn rows() -> Vec<String> {
        let readme = include_str!("../README.md");
        let section = readme.split("\n### Limits\n").nth(1).unwrap();
        let section = section.split("\n## ").next().unwrap();
        let rows = section.lines().filter(|line| line.starts_with("| "));
        let plain = rows.map(|row| {
            let parts = row.split("[^");
            parts
                .enumerate()
                .map(|(number, part)| match number {
                    0 => part,
                    _ => part.split_once(']').unwrap().1,
                })
                .collect()
        });
        plain.collect()
    }

    #[test]
    fn the_readme_states_the_defaults() {
        let limits = Limits::default();
        let seconds = |time: Duration| format!("{} s", time.as_secs());
        let window = seconds(limits.h2_frame_window);
        let stated = [
            (
                "a head",
                format!("{} from its first byte", seconds(limits.head_timeout)),
            ),
            ("an idle connection", seconds(limits.idle_timeout)),
            (
                "streams of a peer's HTTP/2 connection",
                limits.h2_streams.to_string(),
            ),
            (
                "flow-control window of HTTP/2",
                format!(
                    "{} KiB per stream, {} MiB per connection",
                    limits.h2_stream_window >> 10,
                    limits.h2_connection_window >> 20
                ),
            ),
            (
                "resets of HTTP/2",
                format!(
                    "{} pending, {} forced, {} RST_STREAM in {window}",
                    limits.h2_pending_resets,
                    limits.h2_forced_resets,
                    thousands(limits.h2_reset_frames)
                ),
            ),
            (
                "control frames of HTTP/2",
                format!(
                    "{} PING, SETTINGS and PRIORITY in {window}",
                    thousands(limits.h2_control_frames)
                ),
            ),
            ("preamble of a tunnel", seconds(limits.preamble_timeout)),
            (
                "first byte of a plain-text connection in a permissive namespace",
                seconds(limits.first_byte_timeout),
            ),
            ("connecting to an upstream", seconds(limits.connect_timeout)),
            (
                "a failed endpoint",
                format!("skipped for {}", seconds(limits.failure_cooldown)),
            ),
            (
                "streams of a connection to an upstream",
                limits.upstream_streams.to_string(),
            ),
            (
                "an idle upstream connection",
                seconds(limits.upstream_idle_timeout),
            ),
        ];
        let rows = rows();
        for (what, limit) in stated {
            let row = format!("| {what} | {limit} | ");
            let found = rows.iter().any(|line| line.starts_with(&row));
            assert!(found, "no row `{row}` in {rows:#?}");
        }
    }

    fn thousands(number: u32) -> String {
        format!("{},{:03}", number / 1_000, number % 1_000)
    }

    #[test]
    fn the_text_of_the_readme_states_the_defaults_outside_the_table() {
        let limits = Limits::default();
        let s = |time: Duration| format!("{} s", time.as_secs());
        let count = |number: usize| thousands(u32::try_from(number).unwrap());
        assert_eq!(limits.access_log_exit, Duration::from_secs(1));
        let readme = include_str!("../README.md");
        let readme = readme.split_whitespace().collect::<Vec<_>>().join(" ");
        for stated in [
            format!("{} connections per worker", count(limits.connections)),
            format!("pauses for {} ms when", limits.accept_pause.as_millis()),
            format!(
                "mesh TLS within {}, {} at once",
                s(limits.handshake_timeout),
                limits.handshakes
            ),
            format!("{} requests per worker whose", count(limits.in_flight)),
            format!("{} verified tokens per worker", count(limits.cached_tokens)),
            format!("within its limit and {}, before", s(limits.body_timeout)),
            format!("closed after {}, `config.", s(limits.lookup_timeout)),
            format!(
                "handshake with an upstream takes at most {}.",
                s(limits.upstream_handshake_timeout)
            ),
            format!("a worker keeps {}.", limits.upstream_idle_connections),
            format!("pinged after {} of", s(limits.upstream_keep_alive)),
            format!("are looked for every {}.", s(limits.tidy_interval)),
            format!("the first {} permits per", limits.recorded_permits),
            format!("Of the last {} requests", count(limits.decisions)),
            format!("At most {} blocks of lines", limits.access_log_queue),
            "the queued lines of the access log, for at most one second".to_owned(),
            format!(
                "a token issuer takes at most {}, and requests wait at most {} for it",
                s(limits.jwks_timeout),
                s(limits.jwks_wait)
            ),
            format!("for {} hours", limits.jwks_last_good.as_secs() / 3_600),
            format!(
                "not within {} minutes, and {} after a failure",
                limits.jwks_refresh.as_secs() / 60,
                s(limits.jwks_retry)
            ),
            format!(
                "one fetch for it in {} seconds, and one in {} seconds for all",
                limits.jwks_same_key.as_secs(),
                limits.jwks_any_key.as_secs()
            ),
        ] {
            assert!(readme.contains(&stated), "{stated}");
        }
    }

    #[test]
    fn a_file_states_only_what_differs_and_an_unknown_field_is_an_error() {
        let limits: Limits =
            serde_json::from_str(r#"{"inFlight": 4, "idleTimeout": "200ms"}"#).unwrap();
        let expected = Limits {
            in_flight: 4,
            idle_timeout: Duration::from_millis(200),
            ..Limits::default()
        };
        assert_eq!(limits, expected);
        let error = serde_json::from_str::<Limits>(r#"{"inflight": 4}"#).unwrap_err();
        assert!(
            error.to_string().contains("unknown field `inflight`"),
            "{error}"
        );
    }
}
