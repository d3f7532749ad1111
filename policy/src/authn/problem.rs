use jiff::Timestamp;

/// Why a token was rejected. The text is for the operator's log; the client only gets `invalid_token`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenProblem {
    /// The form is invalid: size, parts, encoding, JSON, repeated members, wrong types.
    #[error("the token is malformed: {0}")]
    Malformed(&'static str),
    /// Its `iss` is not an accepted issuer.
    #[error("the issuer `{0}` is not accepted")]
    UnknownIssuer(String),
    /// Its `typ` is not accepted.
    #[error("the token type `{0}` is not accepted")]
    WrongType(String),
    /// It has critical extensions (RFC 7515 §4.1.11); none is supported.
    #[error("the token has critical extensions")]
    CriticalExtension,
    /// Its `alg` is not accepted from this issuer.
    #[error("the algorithm `{0}` is not accepted")]
    WrongAlgorithm(String),
    /// The key may not be used with this algorithm.
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
    /// The issuer has no key with this `kid`: one bounded refetch may find it.
    #[error("the issuer `{issuer}` has no key `{kid}`")]
    UnknownKey {
        /// The issuer's URL.
        issuer: String,
        /// The `kid` of the token.
        kid: String,
    },
    /// The issuer's keys have not been fetched: 503, not 401.
    #[error("the keys of `{issuer}` are not available")]
    KeysUnavailable {
        /// The issuer's URL.
        issuer: String,
    },
    /// The signature was not made by the key.
    #[error("the signature does not match")]
    BadSignature,
    /// `aud` contains none of the accepted audiences.
    #[error("the token is for another audience")]
    WrongAudience,
    /// `exp` is in the past.
    #[error("the token expired at {0}")]
    Expired(Timestamp),
    /// `nbf` is in the future.
    #[error("the token is not valid before {0}")]
    NotYetValid(Timestamp),
    /// `iat` is in the future.
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

    /// The value for the metric label and the access log.
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

    /// The HTTP status: 401, or 503 when the client is not the cause.
    pub fn status(&self) -> u16 {
        match self {
            Self::KeysUnavailable { .. } => 503,
            _ => 401,
        }
    }
}
