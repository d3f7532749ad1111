//! Access tokens of the demo's issuer (RFC 9068), and forged ones.

use std::{
    fs::File,
    io::{ErrorKind, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use aws_lc_rs::{
    hmac,
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use merlon_config::clock;
use serde_json::{Value, json};

use crate::failure::Failure;

/// The claims of a token.
#[derive(Debug, Clone)]
pub(crate) struct Claims {
    pub(crate) issuer: String,
    pub(crate) subject: String,
    pub(crate) audience: String,
    pub(crate) scope: String,
    /// Seconds from now; negative for a token that has expired.
    pub(crate) expires_in: i64,
}

impl Claims {
    fn json(&self) -> Value {
        let now = clock::now().as_second();
        let expires = now.saturating_add(self.expires_in);
        json!({
            "iss": self.issuer,
            "sub": self.subject,
            "aud": self.audience,
            "scope": self.scope,
            "client_id": "merlon-demo",
            "groups": ["customers"],
            // Before `exp`, also for an expired token.
            "iat": now.min(expires).saturating_sub(1),
            "exp": expires,
            "jti": format!("{now}-{}", self.subject),
        })
    }

    /// The token, signed by a key (RFC 7515).
    pub(crate) fn signed_by(&self, key: &SigningKey) -> Result<String, Failure> {
        let signed = self.unsigned(&json!({"alg": "ES256", "typ": "at+jwt", "kid": key.kid}));
        let signature = key
            .pair
            .sign(&SystemRandom::new(), signed.as_bytes())
            .map_err(|_| Failure::runtime("cannot sign a token"))?;
        Ok(format!("{signed}.{}", encode(signature.as_ref())))
    }

    /// An attack on libraries that take the algorithm from the token: HS256 with the issuer's *public* key as the secret
    /// (RFC 8725 §2.1).
    pub(crate) fn keyed_with_public_key(&self, kid: &str, public_key: &[u8]) -> String {
        let signed = self.unsigned(&json!({"alg": "HS256", "typ": "at+jwt", "kid": kid}));
        let key = hmac::Key::new(hmac::HMAC_SHA256, public_key);
        let tag = hmac::sign(&key, signed.as_bytes());
        format!("{signed}.{}", encode(tag.as_ref()))
    }

    /// An attack on the same libraries: `alg` is `none`, and the signature is empty.
    pub(crate) fn with_algorithm_none(&self) -> String {
        format!(
            "{}.",
            self.unsigned(&json!({"alg": "none", "typ": "at+jwt"}))
        )
    }

    fn unsigned(&self, header: &Value) -> String {
        let part = |value: &Value| encode(value.to_string().as_bytes());
        format!("{}.{}", part(header), part(&self.json()))
    }
}

/// An ECDSA P-256 key with its key id.
#[derive(Debug)]
pub(crate) struct SigningKey {
    kid: String,
    pair: EcdsaKeyPair,
}

impl SigningKey {
    pub(crate) fn generate(kid: &str) -> Result<Self, Failure> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)
            .map_err(|_| Failure::runtime("cannot generate a key"))?;
        Ok(Self {
            kid: kid.to_owned(),
            pair,
        })
    }

    /// The key in `file`, or a new key that is written there for the next start.
    pub(crate) fn load_or_create(kid: &str, file: &Path) -> Result<Self, Failure> {
        let failed = |why: &dyn std::fmt::Display| {
            Failure::runtime(format!("the key in {}: {why}", file.display()))
        };
        match std::fs::read(file) {
            Ok(key) => {
                let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &key);
                Ok(Self {
                    kid: kid.to_owned(),
                    pair: pair.map_err(|error| failed(&error))?,
                })
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let new = Self::generate(kid)?;
                let key = new.pair.to_pkcs8v1().map_err(|error| failed(&error))?;
                let mut output = File::options()
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(file)
                    .map_err(|error| failed(&error))?;
                output
                    .write_all(key.as_ref())
                    .map_err(|error| failed(&error))?;
                Ok(new)
            }
            Err(error) => Err(failed(&error)),
        }
    }

    /// The public half as a JSON Web Key (RFC 7518 §6.2.1).
    pub(crate) fn public_jwk(&self) -> Value {
        // An uncompressed point: one byte for the form, then both coordinates.
        let point = self.pair.public_key().as_ref();
        let (x, y) = point
            .get(1..)
            .unwrap_or_default()
            .split_at_checked(32)
            .unwrap_or_default();
        json!({
            "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig",
            "kid": self.kid, "x": encode(x), "y": encode(y),
        })
    }
}

fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}
