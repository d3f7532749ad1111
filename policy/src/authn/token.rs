//! Verifies bearer tokens.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use jsonwebtoken::Algorithm;
use merlon_config::resource::SignatureAlgorithm;
use serde_json::{Map, Value};

use super::{
    claims::{Claims, seconds},
    jwks::{Key, KeySet, algorithm_named},
    rules::{IssuerRules, TokenRules},
    user::User,
};
use crate::validate::json;

pub use super::problem::TokenProblem;

/// Maximum length of a token, in bytes.
pub const MAX_BYTES: usize = 32 << 10;

/// Verifies a token (without `Bearer `) at the time `now`. `keys` returns the keys of an issuer by its URL.
///
/// Nothing in the token is trusted before its signature is verified. Issuer, algorithm and key are read before, but they
/// only select from the configured ones.
///
/// # Errors
/// The first problem, in the order of the checks: form, issuer, type, algorithm, key, signature, audience, time, claims.
pub fn verify(
    token: &str,
    rules: &TokenRules,
    keys: &dyn Fn(&str) -> Option<Arc<KeySet>>,
    now: Timestamp,
) -> Result<User, TokenProblem> {
    let parts = Parts::parse(token)?;
    if parts.header.contains_key("crit") {
        return Err(TokenProblem::CriticalExtension);
    }
    let Some(Value::String(iss)) = parts.payload.get("iss") else {
        return Err(TokenProblem::Malformed(
            "`iss` is missing or is not a string",
        ));
    };
    let issuer = rules
        .issuer(iss)
        .ok_or_else(|| TokenProblem::UnknownIssuer(truncate(iss)))?;
    check_type(&parts.header, issuer)?;
    let algorithm = algorithm(&parts.header, issuer)?;
    let set = keys(&issuer.issuer).ok_or_else(|| TokenProblem::KeysUnavailable {
        issuer: issuer.issuer.clone(),
    })?;
    let key = key(&parts.header, issuer, &set, algorithm)?;
    let verified = jsonwebtoken::crypto::verify(
        parts.signature,
        parts.signed.as_bytes(),
        &key.decoding,
        jsonwebtoken_algorithm(algorithm),
    );
    if !verified.is_ok_and(|valid| valid) {
        return Err(TokenProblem::BadSignature);
    }
    let claims = Claims(&parts.payload);
    let audience = claims.list("aud")?;
    if !audience.iter().any(|own| issuer.audiences.contains(own)) {
        return Err(TokenProblem::WrongAudience);
    }
    let expires_at = check_times(&claims, issuer, now)?;
    claims.user(issuer, audience, expires_at)
}

/// The parts of a token.
struct Parts<'a> {
    /// The signed bytes.
    signed: &'a str,
    signature: &'a str,
    header: Map<String, Value>,
    payload: Map<String, Value>,
}

impl<'a> Parts<'a> {
    fn parse(token: &'a str) -> Result<Self, TokenProblem> {
        if token.len() > MAX_BYTES {
            return Err(TokenProblem::Malformed("it is longer than 32 KiB"));
        }
        let three = || {
            let (signed, signature) = token.rsplit_once('.')?;
            let (header, payload) = signed.split_once('.')?;
            (!payload.contains('.')).then_some((signed, header, payload, signature))
        };
        let (signed, header, payload, signature) =
            three().ok_or(TokenProblem::Malformed("it does not have three parts"))?;
        let header =
            object(header).ok_or(TokenProblem::Malformed("its header is not a JSON object"))?;
        let payload =
            object(payload).ok_or(TokenProblem::Malformed("its payload is not a JSON object"))?;
        // A signature has only one accepted encoding: no padding, no spare bits.
        if signature.is_empty() || URL_SAFE_NO_PAD.decode(signature).is_err() {
            return Err(TokenProblem::Malformed("its signature is not base64url"));
        }
        Ok(Self {
            signed,
            signature,
            header,
            payload,
        })
    }
}

/// Strict base64url and strict JSON: duplicate members are rejected (RFC 7515 §4).
fn object(part: &str) -> Option<Map<String, Value>> {
    let bytes = URL_SAFE_NO_PAD.decode(part).ok()?;
    match json::parse(&bytes) {
        Ok(Value::Object(members)) => Some(members),
        _ => None,
    }
}

fn text<'a>(header: &'a Map<String, Value>, member: &str) -> Result<Option<&'a str>, TokenProblem> {
    match header.get(member) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(TokenProblem::Malformed(
            "a header parameter has the wrong type",
        )),
    }
}

/// `typ` in any case, with or without `application/` (RFC 7515 §4.1.9). A token without `typ` is a `JWT`.
fn check_type(header: &Map<String, Value>, issuer: &IssuerRules) -> Result<(), TokenProblem> {
    let kind = text(header, "typ")?.unwrap_or("JWT");
    let bare = match kind.split_once('/') {
        Some((prefix, rest)) if prefix.eq_ignore_ascii_case("application") => rest,
        _ => kind,
    };
    let accepted = issuer
        .token_types
        .iter()
        .any(|own| own.eq_ignore_ascii_case(bare));
    if accepted {
        Ok(())
    } else {
        Err(TokenProblem::WrongType(truncate(kind)))
    }
}

fn algorithm(
    header: &Map<String, Value>,
    issuer: &IssuerRules,
) -> Result<SignatureAlgorithm, TokenProblem> {
    let named = text(header, "alg")?.ok_or(TokenProblem::Malformed("it has no `alg`"))?;
    algorithm_named(named)
        .filter(|algorithm| issuer.algorithms.contains(algorithm))
        .ok_or_else(|| TokenProblem::WrongAlgorithm(truncate(named)))
}

/// Selects the key from the issuer's set only: `jwk`, `jku`, `x5c` and `x5u` in the header are ignored.
fn key<'a>(
    header: &'a Map<String, Value>,
    issuer: &IssuerRules,
    set: &'a KeySet,
    algorithm: SignatureAlgorithm,
) -> Result<&'a Key, TokenProblem> {
    let mismatch = |kid: &str| TokenProblem::KeyMismatch {
        algorithm: format!("{algorithm:?}"),
        kid: truncate(kid),
    };
    let Some(kid) = text(header, "kid")? else {
        let key = set.single().ok_or(TokenProblem::NoKeyId)?;
        return key
            .fits(algorithm)
            .then_some(key)
            .ok_or_else(|| mismatch(key.kid()));
    };
    if !set.has_key(kid) {
        return Err(TokenProblem::UnknownKey {
            issuer: issuer.issuer.clone(),
            kid: truncate(kid),
        });
    }
    set.named(kid)
        .find(|key| key.fits(algorithm))
        .ok_or_else(|| mismatch(kid))
}

/// `exp` is required; `nbf` and `iat` are checked if present (RFC 7519 §4.1). All allow for the clock skew.
fn check_times(
    claims: &Claims<'_>,
    issuer: &IssuerRules,
    now: Timestamp,
) -> Result<Timestamp, TokenProblem> {
    let at = |name| claims.time(name);
    let skew = issuer.clock_skew.as_secs_f64();
    let now = seconds(now);
    let expires = at("exp")?.ok_or(TokenProblem::Malformed("it has no `exp`"))?;
    if now >= seconds(expires) + skew {
        return Err(TokenProblem::Expired(expires));
    }
    if let Some(not_before) = at("nbf")?.filter(|at| seconds(*at) > now + skew) {
        return Err(TokenProblem::NotYetValid(not_before));
    }
    if let Some(issued) = at("iat")?.filter(|at| seconds(*at) > now + skew) {
        return Err(TokenProblem::IssuedInFuture(issued));
    }
    Ok(expires)
}

fn jsonwebtoken_algorithm(algorithm: SignatureAlgorithm) -> Algorithm {
    match algorithm {
        SignatureAlgorithm::RS256 => Algorithm::RS256,
        SignatureAlgorithm::RS384 => Algorithm::RS384,
        SignatureAlgorithm::RS512 => Algorithm::RS512,
        SignatureAlgorithm::PS256 => Algorithm::PS256,
        SignatureAlgorithm::PS384 => Algorithm::PS384,
        SignatureAlgorithm::PS512 => Algorithm::PS512,
        SignatureAlgorithm::ES256 => Algorithm::ES256,
        SignatureAlgorithm::ES384 => Algorithm::ES384,
        SignatureAlgorithm::EdDSA => Algorithm::EdDSA,
    }
}

/// Truncates untrusted text for logs.
fn truncate(text: &str) -> String {
    text.chars().take(128).collect()
}

#[cfg(test)]
mod tests;
