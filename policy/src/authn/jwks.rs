//! An issuer's public keys as data (RFC 7517).

/// The usable keys of a JWKS.
#[derive(Debug, Clone, Default)]
pub struct KeySet {
    pub(crate) keys: Vec<Key>,
    skipped: Vec<String>,
}

#[derive(Debug, Clone)]
pub(crate) struct Key {
    pub(crate) kid: Option<String>,
}

/// Why bytes are not a usable JWKS.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JwksProblem {
    /// Longer than 1 MiB.
    #[error("the key set has {0} bytes, more than 1 MiB")]
    TooLarge(usize),
    /// Not the JSON it should be.
    #[error("the key set is not valid: {0}")]
    Malformed(String),
    /// More than 100 keys.
    #[error("the key set has {0} keys, more than 100")]
    TooManyKeys(usize),
    /// Nothing in it can verify a token.
    #[error("the key set has no usable key: {0}")]
    NoUsableKey(String),
}

impl KeySet {
    /// Reads a JWKS of at most 1 MiB and 100 keys (RFC 7517 §5). Keys that cannot be used are passed over with a note.
    ///
    /// # Errors
    /// When it is too large, malformed, or holds no usable key.
    pub fn parse(bytes: &[u8]) -> Result<Self, JwksProblem> {
        if bytes.len() > 1 << 20 {
            return Err(JwksProblem::TooLarge(bytes.len()));
        }
        Err(JwksProblem::NoUsableKey(String::new()))
    }

    /// How many keys can be used.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Never: a set without usable keys is refused.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether a key has this `kid`.
    pub fn has_key(&self, kid: &str) -> bool {
        self.keys.iter().any(|key| key.kid.as_deref() == Some(kid))
    }

    /// Why keys were passed over, one sentence each.
    pub fn skipped(&self) -> &[String] {
        &self.skipped
    }
}
