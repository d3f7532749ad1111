//! The reasons for which a request is refused. The response to each is in one table, in [`Refusal`].

pub(crate) mod table;

use std::borrow::Cow;

use jiff::Timestamp;
use merlon_policy::{authn::token::TokenProblem, decision::Deny, path::PathProblem, validate};

pub use self::table::{Refusal, Text};
use super::http1;

/// The reason for which a request is refused.
#[derive(Debug, Clone)]
pub enum Denial {
    /// The message violates HTTP framing; the connection closes.
    Framing(http1::Violation),
    /// A header that is not allowed, or not in this form.
    Header(&'static str),
    /// No authority, more than one, or a malformed one.
    Authority(&'static str),
    /// This connection's certificate does not cover the authority (RFC 9110 §15.5.20).
    Misdirected,
    /// The path is ambiguous or malformed.
    Path(PathProblem),
    /// `access_token` in a query (RFC 9700 §4.3.2).
    TokenInQuery,
    /// `CONNECT` and `TRACE` are not supported.
    Method,
    /// An `Expect` other than `100-continue` (RFC 9110 §10.1.1).
    Expectation,
    /// The headers are too large or too many.
    HeadTooLarge,
    /// The path and query are too long.
    TargetTooLong,
    /// The body exceeded its limit (in bytes) while it was forwarded or read.
    BodyTooLarge(u64),
    /// The body did not arrive in time.
    BodyTimeout,
    /// The caller aborted, or its body is malformed.
    BodyBroken,
    /// No service, port or route matches the request.
    NoRoute(Cow<'static, str>),
    /// A route without backends (Gateway API).
    NoBackend,
    /// A token is required and missing.
    TokenMissing,
    /// `Authorization` is not exactly one well-formed bearer token.
    TokenMalformed,
    /// The token was verified and rejected.
    Token(TokenProblem),
    /// A policy denied the request.
    Policy(Box<Deny>),
    /// A policy permitted the request, but no longer does, before the response started.
    Revoked,
    /// The token was valid and expired at this time, before the response started.
    TokenExpired(Timestamp),
    /// A rate limit is exceeded.
    RateLimited {
        /// The limit's name.
        limit: Box<str>,
        /// Seconds until the next request would be allowed.
        retry_after: u64,
    },
    /// Validation of the request failed.
    Invalid(Box<validate::Violation>),
    /// Too many requests in progress.
    Overload,
    /// There is no snapshot or no identity yet.
    Unconfigured,
    /// The destination is not in the snapshot, and the control plane is unavailable.
    LookupUnavailable,
    /// The mesh does not allow calls to destinations that no resource names, such as this host and port.
    Egress(Box<str>),
    /// The upstream failed.
    Upstream(Upstream),
    /// The request passed too many proxies (RFC 5842 §7.2).
    TooManyHops,
    /// Internal error: a panic was caught.
    Internal,
}

/// How the upstream failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Upstream {
    /// No endpoint, or none that can be tried now.
    NoEndpoint,
    /// It is this proxy itself.
    Loop,
    /// Connecting failed.
    Connect,
    /// Connecting timed out.
    ConnectTimeout,
    /// The peer does not have the expected identity, or the handshake failed.
    Handshake,
    /// The host name does not resolve.
    Dns,
    /// It closed the connection before it responded.
    Reset,
    /// Its response is not valid HTTP.
    Protocol,
    /// It did not respond in time.
    Timeout,
}

impl From<PathProblem> for Denial {
    fn from(problem: PathProblem) -> Self {
        Self::Path(problem)
    }
}

impl From<Deny> for Denial {
    fn from(deny: Deny) -> Self {
        Self::Policy(Box::new(deny))
    }
}

impl From<validate::Violation> for Denial {
    fn from(violation: validate::Violation) -> Self {
        Self::Invalid(Box::new(violation))
    }
}

impl From<Upstream> for Denial {
    fn from(upstream: Upstream) -> Self {
        Self::Upstream(upstream)
    }
}
