//! Every refusal is a value: a status, a reason for the operator, and a sentence for the caller.

use std::{borrow::Cow, time::Duration};

use http::StatusCode;
use jiff::Timestamp;
use merlon_config::snapshot::PolicyName;
use merlon_policy::{authn::token::TokenProblem, decision::Deny, path::PathProblem, validate};

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

impl Upstream {
    const fn reason(self) -> &'static str {
        match self {
            Self::NoEndpoint => "upstream.no_endpoint",
            Self::Connect => "upstream.connect",
            Self::ConnectTimeout => "upstream.connect_timeout",
            Self::Handshake => "upstream.identity",
            Self::Dns => "upstream.dns",
            Self::Reset => "upstream.reset",
            Self::Protocol => "upstream.protocol",
            Self::Timeout => "upstream.timeout",
        }
    }

    const fn status(self) -> StatusCode {
        match self {
            Self::NoEndpoint
            | Self::Connect
            | Self::ConnectTimeout
            | Self::Handshake
            | Self::Dns => StatusCode::SERVICE_UNAVAILABLE,
            Self::Reset | Self::Protocol => StatusCode::BAD_GATEWAY,
            Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    const fn sentence(self) -> &'static str {
        match self {
            Self::NoEndpoint => "nothing serves this at the moment",
            Self::Connect => "the upstream cannot be reached",
            Self::ConnectTimeout => "connecting to the upstream took too long",
            Self::Handshake => "what answered is not the workload that was meant",
            Self::Dns => "the host name does not resolve",
            Self::Reset => "the upstream broke off before it answered",
            Self::Protocol => "what the upstream answered is not HTTP",
            Self::Timeout => "the upstream took too long to answer",
        }
    }
}

impl Denial {
    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Framing(violation) => match violation {
                http1::Violation::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
                http1::Violation::TargetTooLong => StatusCode::URI_TOO_LONG,
                http1::Violation::Timeout => StatusCode::REQUEST_TIMEOUT,
                http1::Violation::HeadTooLarge | http1::Violation::TooManyFields => {
                    StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
                }
                _ => StatusCode::BAD_REQUEST,
            },
            Self::Header(_)
            | Self::Authority(_)
            | Self::Path(_)
            | Self::TokenInQuery
            | Self::BodyBroken => StatusCode::BAD_REQUEST,
            Self::Misdirected => StatusCode::MISDIRECTED_REQUEST,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Expectation => StatusCode::EXPECTATION_FAILED,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::BodyTooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::NoRoute(_) => StatusCode::NOT_FOUND,
            Self::TokenMissing | Self::TokenMalformed | Self::Lapsed(_) => StatusCode::UNAUTHORIZED,
            Self::Token(problem) => status(problem.status()),
            Self::Policy(deny) => status(deny.status()),
            Self::RateLimited { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::Invalid(violation) => status(violation.status),
            Self::Overload | Self::Unconfigured | Self::Unasked => StatusCode::SERVICE_UNAVAILABLE,
            Self::Egress | Self::Revoked => StatusCode::FORBIDDEN,
            Self::Upstream(upstream) => upstream.status(),
            Self::NoBackend | Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The stable reason code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Framing(violation) => match violation {
                http1::Violation::Host => "http.authority",
                http1::Violation::Timeout => "http.timeout",
                http1::Violation::Target => "http.path",
                http1::Violation::TargetTooLong
                | http1::Violation::HeadTooLarge
                | http1::Violation::TooManyFields => "http.limit",
                http1::Violation::FieldName
                | http1::Violation::FieldValue
                | http1::Violation::Repeated => "http.header",
                _ => "http.framing",
            },
            Self::Header(_) | Self::Expectation => "http.header",
            Self::Authority(_) | Self::Misdirected => "http.authority",
            Self::Path(_) => "http.path",
            Self::TokenInQuery | Self::TokenMalformed => "authn.malformed",
            Self::Method => "http.method",
            Self::HeadTooLarge | Self::TargetTooLong | Self::BodyTooLarge(_) => "http.limit",
            Self::BodyTimeout => "http.timeout",
            Self::BodyBroken => "http.framing",
            Self::NoRoute(_) => "http.no_route",
            Self::NoBackend => "upstream.no_backend",
            Self::TokenMissing => "authn.missing",
            Self::Token(problem) => problem.reason(),
            Self::Policy(deny) => deny.code(),
            Self::Revoked => "authz.denied",
            Self::Lapsed(_) => "authn.invalid_token",
            Self::RateLimited { .. } => "rate.limited",
            Self::Invalid(violation) => match violation.reason.as_str() {
                "http.limit" => "http.limit",
                "http.method" => "http.method",
                "http.media_type" => "http.media_type",
                "validate.route" => "validate.route",
                _ => "validate.body",
            },
            Self::Overload => "overload",
            Self::Unconfigured | Self::Unasked => "config.unavailable",
            Self::Egress => "egress.denied",
            Self::Upstream(upstream) => upstream.reason(),
            Self::Internal => "internal.panic",
        }
    }

    /// The last segment of the problem's `type`, and its title (RFC 9457 §3.1).
    pub fn kind(&self) -> (&'static str, &'static str) {
        match self {
            Self::NoRoute(_) => ("no-route", "Nothing answers here"),
            Self::TokenMissing | Self::TokenMalformed | Self::TokenInQuery => {
                ("unauthenticated", "Not authenticated")
            }
            Self::Token(TokenProblem::KeysUnavailable { .. }) => {
                ("keys-unavailable", "Keys not available")
            }
            Self::Token(_) | Self::Lapsed(_) => ("unauthenticated", "Not authenticated"),
            Self::Policy(deny) if deny.status() == 403 => ("not-permitted", "Not permitted"),
            Self::Egress | Self::Revoked => ("not-permitted", "Not permitted"),
            Self::RateLimited { .. } => ("quota-spent", "Too many requests"),
            Self::HeadTooLarge | Self::TargetTooLong | Self::BodyTooLarge(_) => {
                ("too-large", "Too large")
            }
            Self::Framing(_) => match self.status() {
                StatusCode::BAD_REQUEST => ("malformed", "Malformed request"),
                StatusCode::HTTP_VERSION_NOT_SUPPORTED => ("version", "Version not supported"),
                StatusCode::REQUEST_TIMEOUT => ("timeout", "Too slow"),
                _ => ("too-large", "Too large"),
            },
            Self::Method => ("method-not-allowed", "Method not allowed"),
            Self::Invalid(violation) => match violation.status {
                404 => ("no-route", "Nothing answers here"),
                405 => ("method-not-allowed", "Method not allowed"),
                413 | 414 | 431 => ("too-large", "Too large"),
                415 => ("media-type", "Media type not accepted"),
                _ => ("invalid", "Invalid request"),
            },
            Self::Overload | Self::Unconfigured | Self::Unasked => ("overloaded", "Not available"),
            Self::Upstream(Upstream::Timeout) => ("deadline", "Too late"),
            Self::Upstream(_) | Self::NoBackend => ("upstream-failed", "Upstream failed"),
            Self::Internal => ("internal", "Internal error"),
            Self::BodyTimeout => ("timeout", "Too slow"),
            _ => ("malformed", "Malformed request"),
        }
    }

    /// One sentence for the caller: nothing of policies, nothing of what a token holds.
    pub fn sentence(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::Framing(violation) => violation.sentence(),
            Self::Header(sentence) | Self::Authority(sentence) => sentence,
            Self::Misdirected => "this host is not served on this connection",
            Self::Path(problem) => return Cow::Owned(problem.to_string()),
            Self::TokenInQuery => "a token must not stand in a query",
            Self::Method => "this method is not served",
            Self::Expectation => "only `100-continue` can be expected",
            Self::HeadTooLarge => "the headers are larger than 65536 bytes or more than 100",
            Self::TargetTooLong => "path and query are longer than 8192 bytes",
            Self::BodyTooLarge(limit) => {
                return Cow::Owned(format!("the body is larger than {limit} bytes"));
            }
            Self::BodyTimeout => "the body did not come in time",
            Self::BodyBroken => "the body broke off",
            Self::NoRoute(sentence) => return sentence.clone(),
            Self::NoBackend => "the route leads nowhere",
            Self::TokenMissing => "a bearer token is required",
            Self::TokenMalformed => "`Authorization` is not one bearer token",
            Self::Token(TokenProblem::KeysUnavailable { .. }) => {
                "the token issuer's keys are not available"
            }
            Self::Token(_) => "the token is not accepted",
            Self::Lapsed(_) => "the token expired before there was an answer",
            Self::Policy(deny) => {
                return match deny.reason() {
                    Some(reason) => Cow::Owned(reason.to_owned()),
                    None if deny.status() == 403 => Cow::Borrowed("policy does not permit this"),
                    None => Cow::Owned(deny.to_string()),
                };
            }
            Self::Revoked => "policy no longer permits this",
            Self::RateLimited { limit, retry_after } => {
                return Cow::Owned(format!(
                    "the limit `{limit}` is spent; try again in {retry_after} s"
                ));
            }
            Self::Invalid(violation) => return Cow::Owned(violation.to_string()),
            Self::Overload => "too much at once; try again",
            Self::Unconfigured => "the proxy has no configuration yet",
            Self::Unasked => {
                "the proxy does not know this service yet, and the control plane cannot be asked about it now"
            }
            Self::Egress => "calls to destinations outside the mesh are not allowed",
            Self::Upstream(upstream) => upstream.sentence(),
            Self::Internal => "the proxy failed at this request",
        })
    }

    /// What the operator reads beyond the reason; never shown to callers.
    pub fn cause(&self) -> Option<String> {
        match self {
            Self::Token(problem) => Some(problem.to_string()),
            Self::Policy(deny) => Some(deny.to_string()),
            Self::Lapsed(at) => Some(format!("the token expired at {at}")),
            _ => None,
        }
    }

    /// Where in the request a check of its form found something, as `/quantity` in a body.
    pub fn place(&self) -> Option<&str> {
        match self {
            Self::Invalid(violation) => violation.place.as_deref(),
            _ => None,
        }
    }

    /// Whether its facts stand elsewhere already, or were passed on with the request.
    pub(crate) fn is_recorded_elsewhere(&self) -> bool {
        matches!(
            self,
            Self::Policy(_) | Self::Upstream(_) | Self::Revoked | Self::Lapsed(_)
        )
    }

    /// The policy that decided.
    pub fn policy(&self) -> Option<&PolicyName> {
        match self {
            Self::Policy(deny) => deny.policy(),
            _ => None,
        }
    }

    /// Seconds for `Retry-After` (RFC 9110 §10.2.3).
    pub fn retry_after(&self) -> Option<u64> {
        match self {
            Self::RateLimited { retry_after, .. } => Some(*retry_after),
            Self::Overload | Self::Unconfigured | Self::Unasked => Some(1),
            Self::Token(TokenProblem::KeysUnavailable { .. }) => Some(KEYS_RETRY.as_secs()),
            _ => None,
        }
    }

    /// `WWW-Authenticate` (RFC 6750 §3): what is missing, or that what there is will not do, and no more.
    pub fn challenge(&self) -> Option<&'static str> {
        match self {
            Self::TokenMissing => Some("Bearer"),
            Self::TokenMalformed => Some("Bearer error=\"invalid_request\""),
            Self::Token(problem) if problem.status() == 401 => {
                Some("Bearer error=\"invalid_token\"")
            }
            Self::Lapsed(_) => Some("Bearer error=\"invalid_token\""),
            _ => None,
        }
    }

    /// `Allow` (RFC 9110 §10.2.1).
    pub fn allow(&self) -> Option<String> {
        match self {
            Self::Method => Some("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS".to_owned()),
            Self::Invalid(violation) if !violation.allow.is_empty() => {
                Some(violation.allow.join(", "))
            }
            _ => None,
        }
    }

    /// `Accept-Encoding` (RFC 9110 §15.5.16): which encoding of a body there would be no objection to.
    pub fn accept_encoding(&self) -> Option<&'static str> {
        match self {
            Self::Invalid(violation) => (violation.status == 415
                && violation.place.as_deref() == Some("content-encoding"))
            .then_some("identity"),
            _ => None,
        }
    }

    /// Whether the connection must not be used again.
    pub fn closes(&self) -> bool {
        matches!(
            self,
            Self::Framing(_) | Self::BodyTimeout | Self::BodyBroken
        )
    }
}

const KEYS_RETRY: Duration = Duration::from_secs(30);

fn status(code: u16) -> StatusCode {
    StatusCode::from_u16(code).unwrap_or(StatusCode::FORBIDDEN)
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
