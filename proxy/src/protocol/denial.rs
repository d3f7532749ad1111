//! Why a request is refused. What each denial is answered with is one table, in [`refusal`].

mod refusal;

use std::borrow::Cow;

use http::StatusCode;
use jiff::Timestamp;
use merlon_policy::{authn::token::TokenProblem, decision::Deny, path::PathProblem, validate};

pub use self::refusal::{Refusal, Text};
use super::http1;

/// Why a request goes no further.
#[derive(Debug, Clone)]
pub enum Denial {
    /// The message breaks HTTP's framing; the connection closes.
    Framing(http1::Violation),
    /// A header that no request may have, or not in this form.
    Header(&'static str),
    /// None, several or an impossible authority.
    Authority(&'static str),
    /// This connection's certificate is not for that authority (RFC 9110 §15.5.20).
    Misdirected,
    /// The path cannot be read in one way only.
    Path(PathProblem),
    /// `access_token` in a query (RFC 9700 §4.3.2).
    TokenInQuery,
    /// `CONNECT` and `TRACE` are nobody's here.
    Method,
    /// An `Expect` other than `100-continue` (RFC 9110 §10.1.1).
    Expectation,
    /// The headers are too large, as a sum or in number.
    HeadTooLarge,
    /// The path and query are too long.
    TargetTooLong,
    /// The body grew past its limit while it was passed on or read.
    BodyTooLarge(u64),
    /// The body did not come in time.
    BodyTimeout,
    /// The caller broke off or its body was malformed.
    BodyBroken,
    /// Nothing here answers to that name, port or path.
    NoRoute(Cow<'static, str>),
    /// A route without backends (Gateway API).
    NoBackend,
    /// A token is required and there is none.
    TokenMissing,
    /// `Authorization` is not a bearer token in its one form.
    TokenMalformed,
    /// The token was judged.
    Token(TokenProblem),
    /// Policy says no.
    Policy(Box<Deny>),
    /// Policy permitted it and, before it was answered, does so no longer.
    Revoked,
    /// The token was good, and ended at this moment, before the request was answered.
    Lapsed(Timestamp),
    /// A limit is spent.
    RateLimited {
        /// The limit's name.
        limit: Box<str>,
        /// Until the next would pass, in seconds.
        retry_after: u64,
    },
    /// A check of the request's form.
    Invalid(Box<validate::Violation>),
    /// Too much at once.
    Overload,
    /// There is no snapshot, or no identity, yet.
    Unconfigured,
    /// The service was never called before, and the control plane cannot be asked about it.
    Unasked,
    /// The mesh allows no calls to where no resource names.
    Egress,
    /// The upstream failed.
    Upstream(Upstream),
    /// We failed: a panic was caught.
    Internal,
}

/// How an upstream failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Upstream {
    /// It has no endpoint, or none that can be tried now.
    NoEndpoint,
    /// It could not be connected to.
    Connect,
    /// Connecting took too long.
    ConnectTimeout,
    /// The one that answered is not who it must be, or the handshake failed.
    Handshake,
    /// Its name does not resolve.
    Dns,
    /// It broke off before it answered.
    Reset,
    /// What it answered is no HTTP.
    Protocol,
    /// It took too long to answer.
    Timeout,
}

impl Denial {
    /// What the caller is answered and what is recorded.
    pub fn refusal(&self) -> Refusal<'_> {
        Refusal::of(self)
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        self.refusal().status
    }

    /// The stable reason code.
    pub fn reason(&self) -> &'static str {
        self.refusal().reason
    }
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
