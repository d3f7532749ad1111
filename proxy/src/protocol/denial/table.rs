//! The table of refusals: status, reason, problem type, detail and headers of every [`Denial`].

use std::fmt;

use http::StatusCode;
use jiff::Timestamp;
use merlon_config::snapshot::PolicyName;
use merlon_policy::{authn::token::TokenProblem, validate};

use super::{Denial, Upstream};
use crate::protocol::http1;

/// The response to a denial, and what is recorded of it.
#[derive(Debug, Clone)]
pub struct Refusal<'d> {
    /// The HTTP status.
    pub status: StatusCode,
    /// The stable reason code, used in the body, the access log and the metrics.
    pub reason: &'static str,
    /// The last segment of the problem's `type`, and its title (RFC 9457 §3.1).
    pub problem: ProblemType,
    /// One sentence for the caller, without details of policies or of the token's contents.
    pub detail: Text<'d>,
    /// Details for the operator; never sent to callers.
    pub cause: Option<Text<'d>>,
    /// Where in the request the validation failed, as `/quantity` in a body.
    pub place: Option<&'d str>,
    /// The policy that denied the request; sent only to callers with a mesh identity.
    pub policy: Option<&'d PolicyName>,
    /// `Retry-After` in seconds (RFC 9110 §10.2.3).
    pub retry_after: Option<u64>,
    /// `WWW-Authenticate` (RFC 6750 §3): only that a token is missing or not accepted.
    pub challenge: Option<&'static str>,
    /// `Allow` (RFC 9110 §10.2.1).
    pub allow: Option<String>,
    /// `Accept-Encoding` (RFC 9110 §15.5.16): the encoding that is accepted for a body.
    pub accept_encoding: Option<&'static str>,
    /// Whether the connection must not be used again.
    pub closes: bool,
    /// Whether the facts of the decision are recorded elsewhere: already, or by the proxy that received the request.
    pub recorded_elsewhere: bool,
}

/// The last segment of a problem's `type`, and its title.
pub(super) type ProblemType = (&'static str, &'static str);

const DEADLINE: ProblemType = ("deadline", "Deadline exceeded");
const INTERNAL: ProblemType = ("internal", "Internal error");
const INVALID: ProblemType = ("invalid", "Invalid request");
const KEYS_UNAVAILABLE: ProblemType = ("keys-unavailable", "Keys not available");
const LOOP: ProblemType = ("loop-detected", "Loop detected");
const MALFORMED: ProblemType = ("malformed", "Malformed request");
const MEDIA_TYPE: ProblemType = ("media-type", "Media type not accepted");
const METHOD: ProblemType = ("method-not-allowed", "Method not allowed");
const NOT_PERMITTED: ProblemType = ("not-permitted", "Not permitted");
const NO_ROUTE: ProblemType = ("no-route", "No route");
const OVERLOADED: ProblemType = ("overloaded", "Service unavailable");
const TOO_MANY_REQUESTS: ProblemType = ("quota-spent", "Too many requests");
const TIMEOUT: ProblemType = ("timeout", "Request timed out");
const TOO_LARGE: ProblemType = ("too-large", "Too large");
const UNAUTHENTICATED: ProblemType = ("unauthenticated", "Not authenticated");
const UPSTREAM: ProblemType = ("upstream-failed", "Upstream failed");
const VERSION: ProblemType = ("version", "Version not supported");

/// `Retry-After` while an issuer's keys are unavailable, in seconds.
const KEYS_RETRY: u64 = 30;
/// `Retry-After` of an overloaded or unconfigured proxy, in seconds.
const UNAVAILABLE_RETRY: u64 = 1;
const METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";
const INVALID_TOKEN: &str = "Bearer error=\"invalid_token\"";

impl Denial {
    /// The response to the caller, and what is recorded.
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

impl<'d> Refusal<'d> {
    /// One row for each denial.
    fn of(denial: &'d Denial) -> Self {
        match denial {
            Denial::Framing(violation) => Self::framing(*violation).with_close(),
            Denial::Header(sentence) => Self::new(400, "http.header", MALFORMED, *sentence),
            Denial::Authority(sentence) => Self::new(400, "http.authority", MALFORMED, *sentence),
            Denial::Misdirected => Self::new(
                421,
                "http.authority",
                MALFORMED,
                "this host is not served on this connection",
            ),
            Denial::Path(problem) => Self::new(400, "http.path", MALFORMED, Text::Display(problem)),
            Denial::TokenInQuery => Self::new(
                400,
                "authn.malformed",
                UNAUTHENTICATED,
                "a token must not be sent in the query",
            ),
            Denial::Method => {
                let allow = Some(METHODS.to_owned());
                Self {
                    allow,
                    ..Self::new(405, "http.method", METHOD, "this method is not supported")
                }
            }
            Denial::Expectation => Self::new(
                417,
                "http.header",
                MALFORMED,
                "`Expect` supports only `100-continue`",
            ),
            Denial::HeadTooLarge => Self::new(
                431,
                "http.limit",
                TOO_LARGE,
                "the headers exceed 65536 bytes, or there are more than 100",
            ),
            Denial::TargetTooLong => Self::new(
                414,
                "http.limit",
                TOO_LARGE,
                "the path and query are longer than 8192 bytes",
            ),
            Denial::BodyTooLarge(limit) => {
                Self::new(413, "http.limit", TOO_LARGE, Text::BodyTooLarge(*limit))
            }
            Denial::BodyTimeout => {
                Self::new(408, "http.timeout", TIMEOUT, "the request body timed out").with_close()
            }
            Denial::BodyBroken => Self::new(
                400,
                "http.framing",
                MALFORMED,
                "the request body is incomplete or malformed",
            )
            .with_close(),
            Denial::TooManyHops => Self::new(
                508,
                "http.loop",
                LOOP,
                "the request passed 32 proxies: it runs in a circle",
            ),
            Denial::NoRoute(sentence) => Self::new(404, "http.no_route", NO_ROUTE, &**sentence),
            Denial::NoBackend => Self::new(
                500,
                "upstream.no_backend",
                UPSTREAM,
                "the route has no backend",
            ),
            Denial::TokenMissing => Self::new(
                401,
                "authn.missing",
                UNAUTHENTICATED,
                "a bearer token is required",
            )
            .with_challenge("Bearer"),
            Denial::TokenMalformed => Self::new(
                401,
                "authn.malformed",
                UNAUTHENTICATED,
                "`Authorization` must hold exactly one bearer token",
            )
            .with_challenge("Bearer error=\"invalid_request\""),
            Denial::Token(problem @ TokenProblem::KeysUnavailable { .. }) => Self::new(
                problem.status(),
                problem.reason(),
                KEYS_UNAVAILABLE,
                "the token issuer's keys are not available",
            )
            .with_retry_after(KEYS_RETRY)
            .with_cause(Text::Display(problem)),
            Denial::Token(problem) => Self::new(
                problem.status(),
                problem.reason(),
                UNAUTHENTICATED,
                "the token is not accepted",
            )
            .with_challenge(INVALID_TOKEN)
            .with_cause(Text::Display(problem)),
            Denial::TokenExpired(at) => Self::new(
                401,
                "authn.invalid_token",
                UNAUTHENTICATED,
                "the token expired before the response started",
            )
            .with_challenge(INVALID_TOKEN)
            .with_cause(Text::Expired(*at))
            .already_recorded(),
            Denial::Policy(deny) => {
                let (problem, detail) = match (deny.status(), deny.reason()) {
                    (403, None) => (NOT_PERMITTED, "policy does not permit this request".into()),
                    (403, Some(reason)) => (NOT_PERMITTED, reason.into()),
                    (_, Some(reason)) => (MALFORMED, reason.into()),
                    (_, None) => (MALFORMED, Text::Display(&**deny)),
                };
                Self {
                    policy: deny.policy(),
                    ..Self::new(deny.status(), deny.code(), problem, detail)
                }
                .with_cause(Text::Display(&**deny))
                .already_recorded()
            }
            Denial::Revoked => Self::new(
                403,
                "authz.denied",
                NOT_PERMITTED,
                "policy no longer permits this request",
            )
            .already_recorded(),
            Denial::RateLimited { limit, retry_after } => {
                let detail = Text::RateLimited(limit, *retry_after);
                Self::new(429, "rate.limited", TOO_MANY_REQUESTS, detail)
                    .with_retry_after(*retry_after)
            }
            Denial::Invalid(violation) => Self::invalid(violation),
            Denial::Overload => Self::new(
                503,
                "overload",
                OVERLOADED,
                "too many requests in progress; try again",
            )
            .with_retry_after(UNAVAILABLE_RETRY),
            Denial::Unconfigured => Self::new(
                503,
                "config.unavailable",
                OVERLOADED,
                "the proxy has no configuration yet",
            )
            .with_retry_after(UNAVAILABLE_RETRY),
            Denial::LookupUnavailable => Self::new(
                503,
                "config.unavailable",
                OVERLOADED,
                "the proxy does not know this service yet, and the control plane is unavailable",
            )
            .with_retry_after(UNAVAILABLE_RETRY),
            Denial::Egress(destination) => Self::new(
                403,
                "egress.denied",
                NOT_PERMITTED,
                Text::NotInMesh(destination),
            ),
            Denial::Upstream(upstream) => Self::upstream(*upstream).already_recorded(),
            Denial::Internal => Self::new(
                500,
                "internal.panic",
                INTERNAL,
                "an internal error occurred",
            ),
        }
    }

    /// One row for each violation of HTTP/1 framing.
    fn framing(violation: http1::Violation) -> Self {
        use http1::Violation as V;
        let (status, reason, problem) = match violation {
            V::Version => (505, "http.framing", VERSION),
            V::TargetTooLong => (414, "http.limit", TOO_LARGE),
            V::HeadTooLarge | V::TooManyFields => (431, "http.limit", TOO_LARGE),
            V::Timeout => (408, "http.timeout", TIMEOUT),
            V::Host => (400, "http.authority", MALFORMED),
            V::Target => (400, "http.path", MALFORMED),
            V::FieldName | V::FieldValue | V::Repeated => (400, "http.header", MALFORMED),
            V::LineEnd
            | V::RequestLine
            | V::Folded
            | V::ContentLength
            | V::TransferEncoding
            | V::LengthAndEncoding
            | V::Chunk
            | V::ChunkExtensions
            | V::Trailer => (400, "http.framing", MALFORMED),
        };
        Self::new(status, reason, problem, violation.message())
    }

    /// One row for each failure of an upstream.
    fn upstream(upstream: Upstream) -> Self {
        let (status, reason, problem, sentence) = match upstream {
            Upstream::NoEndpoint => (
                503,
                "upstream.no_endpoint",
                UPSTREAM,
                "no healthy endpoint is available",
            ),
            Upstream::Loop => (
                508,
                "upstream.loop",
                LOOP,
                "the upstream is this proxy itself",
            ),
            Upstream::Connect => (
                503,
                "upstream.connect",
                UPSTREAM,
                "cannot connect to the upstream",
            ),
            Upstream::ConnectTimeout => (
                503,
                "upstream.connect_timeout",
                UPSTREAM,
                "connecting to the upstream timed out",
            ),
            Upstream::Handshake => (
                503,
                "upstream.identity",
                UPSTREAM,
                "the upstream's identity is not the expected one",
            ),
            Upstream::Dns => (
                503,
                "upstream.dns",
                UPSTREAM,
                "the host name does not resolve",
            ),
            Upstream::Reset => (
                502,
                "upstream.reset",
                UPSTREAM,
                "the upstream closed the connection before its response was complete",
            ),
            Upstream::Protocol => (
                502,
                "upstream.protocol",
                UPSTREAM,
                "the upstream's response is not valid HTTP",
            ),
            Upstream::Timeout => (
                504,
                "upstream.timeout",
                DEADLINE,
                "the upstream did not respond in time",
            ),
        };
        Self::new(status, reason, problem, sentence)
    }

    /// A request that the service's validation rules reject.
    fn invalid(violation: &'d validate::Violation) -> Self {
        let reason = match violation.reason.as_str() {
            "http.limit" => "http.limit",
            "http.method" => "http.method",
            "http.media_type" => "http.media_type",
            "validate.route" => "validate.route",
            _ => "validate.body",
        };
        let problem = match violation.status {
            404 => NO_ROUTE,
            405 => METHOD,
            413 | 414 | 431 => TOO_LARGE,
            415 => MEDIA_TYPE,
            _ => INVALID,
        };
        let place = violation.place.as_deref();
        let encoded = violation.status == 415 && place == Some("content-encoding");
        Self {
            place,
            allow: (!violation.allow.is_empty()).then(|| violation.allow.join(", ")),
            accept_encoding: encoded.then_some("identity"),
            ..Self::new(violation.status, reason, problem, Text::Display(violation))
        }
    }

    fn new(
        status: u16,
        reason: &'static str,
        problem: ProblemType,
        detail: impl Into<Text<'d>>,
    ) -> Self {
        Self {
            status: StatusCode::from_u16(status).unwrap_or(StatusCode::FORBIDDEN),
            reason,
            problem,
            detail: detail.into(),
            cause: None,
            place: None,
            policy: None,
            retry_after: None,
            challenge: None,
            allow: None,
            accept_encoding: None,
            closes: false,
            recorded_elsewhere: false,
        }
    }

    fn with_close(self) -> Self {
        Self {
            closes: true,
            ..self
        }
    }

    fn with_challenge(self, challenge: &'static str) -> Self {
        Self {
            challenge: Some(challenge),
            ..self
        }
    }

    fn with_retry_after(self, seconds: u64) -> Self {
        Self {
            retry_after: Some(seconds),
            ..self
        }
    }

    fn with_cause(self, cause: Text<'d>) -> Self {
        Self {
            cause: Some(cause),
            ..self
        }
    }

    fn already_recorded(self) -> Self {
        Self {
            recorded_elsewhere: true,
            ..self
        }
    }
}

/// A text that is formatted on use: most denials are counted and logged by their reason only.
#[derive(Clone, Copy)]
pub enum Text<'d> {
    /// A fixed text.
    Plain(&'d str),
    /// The value's `Display` output.
    Display(&'d dyn fmt::Display),
    /// A body that exceeds this limit in bytes.
    BodyTooLarge(u64),
    /// A host and port that no Service of the mesh has.
    NotInMesh(&'d str),
    /// The limit's name, and the seconds until the next request is allowed.
    RateLimited(&'d str, u64),
    /// When the token expired.
    Expired(Timestamp),
}

impl<'d> From<&'d str> for Text<'d> {
    fn from(text: &'d str) -> Self {
        Self::Plain(text)
    }
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(text) => f.write_str(text),
            Self::Display(value) => value.fmt(f),
            Self::NotInMesh(destination) => write!(
                f,
                "`{destination}` is not a Service of the mesh, and calls to other destinations are not allowed"
            ),
            Self::BodyTooLarge(limit) => write!(f, "the body is larger than {limit} bytes"),
            Self::RateLimited(limit, seconds) => {
                write!(
                    f,
                    "the rate limit `{limit}` is exceeded; try again in {seconds} s"
                )
            }
            Self::Expired(at) => write!(f, "the token expired at {at}"),
        }
    }
}

impl fmt::Debug for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.to_string(), f)
    }
}
