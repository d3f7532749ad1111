//! Join tokens, with which machines outside Kubernetes get their first certificate.

use std::{fmt, str::FromStr};

use aws_lc_rs::{constant_time, digest};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use merlon_config::name::TrustDomain;
use zeroize::Zeroizing;

/// A one-time secret with a pin of the mesh's root: `merlon-join.1.<trust-domain>.<secret>.<SHA-256 of the root>`.
///
/// The secret authenticates the machine to the control plane. The hash lets the machine authenticate the control plane
/// before it has a trust bundle. The secret is 32 random bytes in base64url, the hash is of the root's DER,
/// hexadecimal.
#[derive(Clone)]
pub struct JoinToken {
    trust_domain: TrustDomain,
    secret: Zeroizing<[u8; 32]>,
    root_sha256: [u8; 32],
}

/// Why a text is not a join token. The messages do not contain the text, which may be a mistyped secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JoinTokenError {
    /// The prefix is missing.
    #[error("a join token starts with `merlon-join.1.`")]
    Prefix,
    /// Parts are missing.
    #[error("a join token consists of a trust domain, a secret and a root hash, separated by dots")]
    Parts,
    /// The trust domain is not valid.
    #[error("the join token's trust domain is not valid")]
    TrustDomain,
    /// The secret is not 32 bytes in base64url.
    #[error(
        "the join token's secret is not 32 bytes in base64url: was the token copied completely?"
    )]
    Secret,
    /// The hash is not a SHA-256.
    #[error(
        "the join token's root hash is not 64 hexadecimal digits: was the token copied completely?"
    )]
    RootHash,
}

const PREFIX: &str = "merlon-join.1.";

impl JoinToken {
    /// A token with `secret` for the mesh with the root certificate `root`, in DER.
    pub fn new(trust_domain: TrustDomain, secret: [u8; 32], root: &[u8]) -> Self {
        Self {
            trust_domain,
            secret: Zeroizing::new(secret),
            root_sha256: sha256(root),
        }
    }

    /// The trust domain of the mesh.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The hash that the control plane stores instead of the secret.
    pub fn secret_sha256(&self) -> [u8; 32] {
        sha256(self.secret.as_slice())
    }

    /// The hash of the pinned root.
    pub fn root_sha256(&self) -> [u8; 32] {
        self.root_sha256
    }

    /// Whether `root`, in DER, is the pinned root.
    pub fn pins(&self, root: &[u8]) -> bool {
        constant_time::verify_slices_are_equal(&sha256(root), &self.root_sha256).is_ok()
    }

    /// The complete token with its secret, to show once to the user or to send to `Issue`.
    pub fn reveal(&self) -> String {
        let secret = BASE64_URL_SAFE_NO_PAD.encode(self.secret.as_slice());
        format!(
            "{PREFIX}{}.{secret}.{}",
            self.trust_domain,
            Hex(&self.root_sha256)
        )
    }
}

impl FromStr for JoinToken {
    type Err = JoinTokenError;

    fn from_str(text: &str) -> Result<Self, JoinTokenError> {
        let rest = text
            .trim()
            .strip_prefix(PREFIX)
            .ok_or(JoinTokenError::Prefix)?;
        // A trust domain may contain dots. The other two parts do not.
        let (rest, hash) = rest.rsplit_once('.').ok_or(JoinTokenError::Parts)?;
        let (domain, secret) = rest.rsplit_once('.').ok_or(JoinTokenError::Parts)?;
        let mut bytes = Zeroizing::new([0_u8; 32]);
        // The decoder's estimate for 43 characters exceeds the 32 bytes that they decode to.
        let mut buffer = Zeroizing::new([0_u8; 36]);
        if secret.len() != 43
            || BASE64_URL_SAFE_NO_PAD.decode_slice(secret, buffer.as_mut_slice()) != Ok(32)
        {
            return Err(JoinTokenError::Secret);
        }
        for (to, from) in bytes.iter_mut().zip(buffer.iter()) {
            *to = *from;
        }
        Ok(Self {
            trust_domain: domain.parse().map_err(|_| JoinTokenError::TrustDomain)?,
            secret: bytes,
            root_sha256: unhex(hash).ok_or(JoinTokenError::RootHash)?,
        })
    }
}

/// Omits the secret, because it is sufficient to impersonate the workload.
impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken")
            .field("trust_domain", &self.trust_domain)
            .field("secret", &"[redacted]")
            .field("root", &Hex(&self.root_sha256).to_string())
            .finish()
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    for (to, from) in out
        .iter_mut()
        .zip(digest::digest(&digest::SHA256, bytes).as_ref())
    {
        *to = *from;
    }
    out
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut out = [0; 32];
    let lower = |b: &u8| b.is_ascii_digit() || (b'a'..=b'f').contains(b);
    if text.len() != 64 || !text.as_bytes().iter().all(lower) {
        return None;
    }
    for (to, pair) in out.iter_mut().zip(text.as_bytes().chunks(2)) {
        *to = u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(out)
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> JoinToken {
        JoinToken::new("a.b.test".parse().unwrap(), [7; 32], b"root")
    }

    #[test]
    fn a_token_is_parsed_as_it_was_printed() {
        let read: JoinToken = token().reveal().parse().unwrap();
        assert_eq!(read.trust_domain().as_str(), "a.b.test");
        assert_eq!(read.secret_sha256(), token().secret_sha256());
        assert!(read.pins(b"root") && !read.pins(b"another"));
    }

    #[test]
    fn an_incomplete_token_is_refused_with_the_part_that_is_wrong() {
        let text = token().reveal();
        let parse = |text: &str| text.parse::<JoinToken>().unwrap_err();
        assert_eq!(parse("hello"), JoinTokenError::Prefix);
        assert_eq!(parse("merlon-join.1.a"), JoinTokenError::Parts);
        assert_eq!(parse(&text.replace(".4", ".")), JoinTokenError::RootHash);
        assert_eq!(parse(&text.replace("BwcH", "")), JoinTokenError::Secret);
        assert_eq!(
            parse(&text.replace("a.b", "A.b")),
            JoinTokenError::TrustDomain
        );
    }

    #[test]
    fn debug_shows_no_secret() {
        assert!(!format!("{:?}", token()).contains("Bwc"));
    }
}
