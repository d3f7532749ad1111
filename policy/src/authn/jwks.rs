//! Parses an issuer's public keys (RFC 7517, RFC 7518 §6, RFC 8037 §2).

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::DecodingKey;
use merlon_config::resource::SignatureAlgorithm;
use serde_json::{Map, Value};

use crate::validate::json;

/// Maximum size of a key set, in bytes.
pub const MAX_BYTES: usize = 1 << 20;
/// Maximum number of keys in a set.
pub const MAX_KEYS: usize = 100;

/// The usable keys of a JWKS.
#[derive(Debug, Clone, Default)]
pub struct KeySet {
    keys: Vec<Key>,
    skipped: Vec<String>,
}

/// One public key.
#[derive(Clone)]
pub(crate) struct Key {
    kid: Option<String>,
    kind: KeyKind,
    /// `alg`: the only algorithm that the key may be used with.
    algorithm: Option<String>,
    pub(crate) decoding: DecodingKey,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KeyKind {
    Rsa,
    P256,
    P384,
    Ed25519,
}

/// Why bytes are not a usable JWKS.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JwksProblem {
    /// Longer than [`MAX_BYTES`].
    #[error("the key set has {0} bytes, more than 1 MiB")]
    TooLarge(usize),
    /// Not a JSON object with an array `keys`.
    #[error("the key set is not valid: {0}")]
    Malformed(String),
    /// More than [`MAX_KEYS`].
    #[error("the key set has {0} keys, more than 100")]
    TooManyKeys(usize),
    /// None of its keys can verify a token.
    #[error("the key set has no usable key: {0}")]
    NoUsableKey(String),
}

impl KeySet {
    /// Parses a JWKS of at most 1 MiB and 100 keys (RFC 7517 §5). Unusable keys are skipped with a reason: symmetric and
    /// private keys, keys for other uses, RSA keys below 2048 or above 8192 bits, unsupported curves.
    ///
    /// # Errors
    /// When it is too large, malformed, or contains no usable key.
    pub fn parse(bytes: &[u8]) -> Result<Self, JwksProblem> {
        if bytes.len() > MAX_BYTES {
            return Err(JwksProblem::TooLarge(bytes.len()));
        }
        let set =
            json::parse(bytes).map_err(|problem| JwksProblem::Malformed(problem.to_string()))?;
        let Some(Value::Array(entries)) = set.get("keys") else {
            return Err(JwksProblem::Malformed("it has no array `keys`".to_owned()));
        };
        if entries.len() > MAX_KEYS {
            return Err(JwksProblem::TooManyKeys(entries.len()));
        }
        let mut keys = Self::default();
        for (number, entry) in entries.iter().enumerate() {
            match Key::parse(entry) {
                Ok(key) => keys.keys.push(key),
                Err(why) => keys.skipped.push(format!("key {number} {why}")),
            }
        }
        if keys.keys.is_empty() {
            let why = keys.skipped.first().cloned();
            return Err(JwksProblem::NoUsableKey(
                why.unwrap_or_else(|| "it is empty".to_owned()),
            ));
        }
        Ok(keys)
    }

    /// The number of usable keys.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Always false, since a set without usable keys is rejected.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether a key has this `kid`.
    pub fn has_key(&self, kid: &str) -> bool {
        self.named(kid).next().is_some()
    }

    /// The reasons why keys were skipped.
    pub fn skipped(&self) -> &[String] {
        &self.skipped
    }

    /// The keys with this `kid`; there may be one per algorithm (RFC 7517 §4.5).
    pub(crate) fn named<'a>(&'a self, kid: &'a str) -> impl Iterator<Item = &'a Key> {
        self.keys
            .iter()
            .filter(move |key| key.kid.as_deref() == Some(kid))
    }

    /// The key, if the set has exactly one.
    pub(crate) fn single(&self) -> Option<&Key> {
        match self.keys.as_slice() {
            [key] => Some(key),
            _ => None,
        }
    }
}

impl Key {
    fn parse(entry: &Value) -> Result<Self, &'static str> {
        let Value::Object(entry) = entry else {
            return Err("is not an object");
        };
        if entry.contains_key("d") || entry.contains_key("k") {
            return Err("contains a secret");
        }
        if entry.get("use").is_some_and(|purpose| purpose != "sig") {
            return Err("is not for signatures");
        }
        if let Some(operations) = entry.get("key_ops") {
            let verifies = operations
                .as_array()
                .is_some_and(|operations| operations.iter().any(|operation| operation == "verify"));
            if !verifies {
                return Err("is not for verification");
            }
        }
        let (kind, decoding) = match optional(entry, "kty")? {
            Some("RSA") => Self::rsa(entry)?,
            Some("EC") => Self::elliptic(entry)?,
            Some("OKP") => Self::edwards(entry)?,
            _ => return Err("has an unsupported type"),
        };
        let key = Self {
            kid: optional(entry, "kid")?.map(str::to_owned),
            kind,
            algorithm: optional(entry, "alg")?.map(str::to_owned),
            decoding,
        };
        // A key whose `alg` contradicts its type is misconfigured, so it is not used.
        let some_fits = ALGORITHMS.iter().any(|algorithm| key.fits(*algorithm));
        if some_fits {
            Ok(key)
        } else {
            Err("names an algorithm that does not match its type")
        }
    }

    fn rsa(entry: &Map<String, Value>) -> Result<(KeyKind, DecodingKey), &'static str> {
        let modulus = octets(entry, "n")?;
        let exponent = octets(entry, "e")?;
        let leading = modulus.iter().take_while(|byte| **byte == 0).count();
        let top = modulus.get(leading).map_or(8, |byte| byte.leading_zeros());
        let bits = (modulus.len() - leading) * 8;
        let bits = bits.saturating_sub(usize::try_from(top).unwrap_or(0));
        if !(2_048..=8_192).contains(&bits) {
            return Err("is an RSA key of less than 2048 or more than 8192 bits");
        }
        if exponent.last().is_none_or(|byte| byte % 2 == 0) || exponent.len() > 8 || exponent == [1]
        {
            return Err("has an exponent that is even or out of range");
        }
        let key = DecodingKey::from_rsa_raw_components(
            modulus.get(leading..).unwrap_or_default(),
            &exponent,
        );
        Ok((KeyKind::Rsa, key))
    }

    fn elliptic(entry: &Map<String, Value>) -> Result<(KeyKind, DecodingKey), &'static str> {
        let (kind, length) = match optional(entry, "crv")? {
            Some("P-256") => (KeyKind::P256, 32),
            Some("P-384") => (KeyKind::P384, 48),
            _ => return Err("is on an unsupported curve"),
        };
        if octets(entry, "x")?.len() != length || octets(entry, "y")?.len() != length {
            return Err("has coordinates of the wrong length");
        }
        let (x, y) = (optional(entry, "x")?, optional(entry, "y")?);
        let key = DecodingKey::from_ec_components(x.unwrap_or_default(), y.unwrap_or_default());
        key.map(|key| (kind, key))
            .map_err(|_| "is not a point on its curve")
    }

    fn edwards(entry: &Map<String, Value>) -> Result<(KeyKind, DecodingKey), &'static str> {
        if optional(entry, "crv")? != Some("Ed25519") || octets(entry, "x")?.len() != 32 {
            return Err("is on an unsupported curve");
        }
        let x = optional(entry, "x")?.unwrap_or_default();
        let key = DecodingKey::from_ed_components(x).map_err(|_| "is not a point on its curve")?;
        Ok((KeyKind::Ed25519, key))
    }

    /// Whether the key may be used with this algorithm, by its type, its curve and its `alg` (RFC 8725 §3.1).
    pub(crate) fn fits(&self, algorithm: SignatureAlgorithm) -> bool {
        use SignatureAlgorithm as A;
        let by_kind = match algorithm {
            A::RS256 | A::RS384 | A::RS512 | A::PS256 | A::PS384 | A::PS512 => {
                self.kind == KeyKind::Rsa
            }
            A::ES256 => self.kind == KeyKind::P256,
            A::ES384 => self.kind == KeyKind::P384,
            A::EdDSA => self.kind == KeyKind::Ed25519,
        };
        by_kind
            && self.algorithm.as_deref().is_none_or(|only| {
                // RFC 9864 adds the name `Ed25519` for EdDSA on this curve.
                only == name(algorithm) || (only == "Ed25519" && algorithm == A::EdDSA)
            })
    }

    pub(crate) fn kid(&self) -> &str {
        self.kid.as_deref().unwrap_or_default()
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key")
            .field("kid", &self.kid)
            .field("kind", &self.kind)
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

const ALGORITHMS: [SignatureAlgorithm; 9] = [
    SignatureAlgorithm::RS256,
    SignatureAlgorithm::RS384,
    SignatureAlgorithm::RS512,
    SignatureAlgorithm::PS256,
    SignatureAlgorithm::PS384,
    SignatureAlgorithm::PS512,
    SignatureAlgorithm::ES256,
    SignatureAlgorithm::ES384,
    SignatureAlgorithm::EdDSA,
];

/// The algorithm's registered name (RFC 7518 §3.1).
fn name(algorithm: SignatureAlgorithm) -> &'static str {
    use SignatureAlgorithm as A;
    match algorithm {
        A::RS256 => "RS256",
        A::RS384 => "RS384",
        A::RS512 => "RS512",
        A::PS256 => "PS256",
        A::PS384 => "PS384",
        A::PS512 => "PS512",
        A::ES256 => "ES256",
        A::ES384 => "ES384",
        A::EdDSA => "EdDSA",
    }
}

/// The algorithm with this name, compared byte for byte. `none` and HMAC have no entry, so they are never used.
pub(crate) fn algorithm_named(text: &str) -> Option<SignatureAlgorithm> {
    ALGORITHMS
        .into_iter()
        .find(|algorithm| name(*algorithm) == text)
}

fn optional<'a>(
    entry: &'a Map<String, Value>,
    member: &str,
) -> Result<Option<&'a str>, &'static str> {
    match entry.get(member) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err("has a member of the wrong type"),
    }
}

fn octets(entry: &Map<String, Value>, member: &str) -> Result<Vec<u8>, &'static str> {
    let text = optional(entry, member)?.ok_or("lacks a required member")?;
    URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|_| "has a member that is not base64url")
}
