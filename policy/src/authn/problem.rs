use jiff::Timestamp;

/// Why a token was not accepted. The text is for the operator's log; the caller learns only `invalid_token`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenProblem {
    /// Not a token by its form: size, parts, encoding, JSON, repeated members, wrong types.
    #[error("the token is malformed: {0}")]
    Malformed(&'static str),
    /// Its `iss` is nobody's whose tokens are accepted here.
    #[error("the issuer `{0}` is not accepted")]
    UnknownIssuer(String),
    /// Its `typ` is not accepted.
    #[error("the token type `{0}` is not accepted")]
    WrongType(String),
    /// It marks extensions as critical (RFC 7515 §4.1.11); none is known.
    #[error("the token has critical extensions")]
    CriticalExtension,
    /// Its `alg` is not accepted of this issuer.
    #[error("the algorithm `{0}` is not accepted")]
    WrongAlgorithm(String),
    /// The key is not for this algorithm.
    #[error("the algorithm `{algorithm}` does not match the key `{kid}`")]
    KeyMismatch {
        /// `alg`.
        algorithm: String,
        /// `kid`, empty when the only key has none.
        kid: String,
    },
    /// No `kid`, and the issuer has several keys.
    #[error("the token has no `kid`, and the issuer has several keys")]
    NoKeyId,
    /// The issuer has no key of this name now: worth one bounded refetch.
    #[error("the issuer `{issuer}` has no key `{kid}`")]
    UnknownKey {
        /// The issuer's URL.
        issuer: String,
        /// The key asked for.
        kid: String,
    },
    /// The issuer's keys could not be had: 503, not 401.
    #[error("the keys of `{issuer}` are not available")]
    KeysUnavailable {
        /// The issuer's URL.
        issuer: String,
    },
    /// The signature is not the key's.
    #[error("the signature does not match")]
    BadSignature,
    /// None of the accepted audiences is in `aud`.
    #[error("the token is for another audience")]
    WrongAudience,
    /// `exp` is past.
    #[error("the token expired at {0}")]
    Expired(Timestamp),
    /// `nbf` is ahead.
    #[error("the token is not valid before {0}")]
    NotYetValid(Timestamp),
    /// `iat` is ahead.
    #[error("the token was issued in the future, at {0}")]
    IssuedInFuture(Timestamp),
}

impl TokenProblem {
    /// The stable reason code: `authn.keys_unavailable`, or `authn.invalid_token`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::KeysUnavailable { .. } => "authn.keys_unavailable",
            _ => "authn.invalid_token",
        }
    }

    /// A word for a metric's label and the access log.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::UnknownIssuer(_) => "unknown_issuer",
            Self::WrongType(_) => "wrong_type",
            Self::CriticalExtension => "critical_extension",
            Self::WrongAlgorithm(_) => "wrong_algorithm",
            Self::KeyMismatch { .. } => "key_mismatch",
            Self::NoKeyId => "no_key_id",
            Self::UnknownKey { .. } => "unknown_key",
            Self::KeysUnavailable { .. } => "keys_unavailable",
            Self::BadSignature => "bad_signature",
            Self::WrongAudience => "wrong_audience",
            Self::Expired(_) => "expired",
            Self::NotYetValid(_) => "not_yet_valid",
            Self::IssuedInFuture(_) => "issued_in_future",
        }
    }

    /// The HTTP status: 401, or 503 where it is not the caller's fault.
    pub fn status(&self) -> u16 {
        match self {
            Self::KeysUnavailable { .. } => 503,
            _ => 401,
        }
    }
}
