//! What a machine outside Kubernetes is given to get its first certificate.

use std::{fmt, str::FromStr};

use aws_lc_rs::{constant_time, digest};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use merlon_config::name::TrustDomain;
use zeroize::Zeroizing;

/// A one-time secret that names the mesh's root: `merlon-join.1.<trust-domain>.<secret>.<SHA-256 of the root>`.
///
/// The secret proves the machine to the control plane; the hash lets the machine know the control plane before it
/// has any trust bundle. The secret is 32 random bytes in base64url, the hash is of the root's DER, hexadecimal.
#[derive(Clone)]
pub struct JoinToken {
    trust_domain: TrustDomain,
    secret: Zeroizing<[u8; 32]>,
    root_sha256: [u8; 32],
}

/// Why a text is not a join token. Says nothing of the text, which may be a mistyped secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JoinTokenError {
    /// It does not begin as one.
    #[error("a join token begins with `merlon-join.1.`")]
    Prefix,
    /// Parts are missing.
    #[error("a join token has a trust domain, a secret and a root's hash, joined by dots")]
    Parts,
    /// The trust domain is not one.
    #[error("the join token's trust domain is not a trust domain")]
    TrustDomain,
    /// The secret is not 32 bytes in base64url.
    #[error("the join token's secret is not 32 bytes in base64url: was it copied whole?")]
    Secret,
    /// The hash is not a SHA-256.
    #[error("the join token's root hash is not 64 hexadecimal digits: was it copied whole?")]
    RootHash,
}

const PREFIX: &str = "merlon-join.1.";

impl JoinToken {
    /// A token of `secret` for the mesh whose root is `root`, in DER.
    pub fn new(trust_domain: TrustDomain, secret: [u8; 32], root: &[u8]) -> Self {
        Self {
            trust_domain,
            secret: Zeroizing::new(secret),
            root_sha256: sha256(root),
        }
    }

    /// Whose mesh it opens.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// What the control plane keeps instead of the secret.
    pub fn secret_sha256(&self) -> [u8; 32] {
        sha256(self.secret.as_slice())
    }

    /// The pinned root's hash.
    pub fn root_sha256(&self) -> [u8; 32] {
        self.root_sha256
    }

    /// Whether `root`, in DER, is the root that the token names.
    pub fn pins(&self, root: &[u8]) -> bool {
        constant_time::verify_slices_are_equal(&sha256(root), &self.root_sha256).is_ok()
    }

    /// The whole token with its secret, to be shown once to the person who asked for it, or sent to `Issue`.
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
        // A trust domain has dots of its own; the other two parts have none.
        let (rest, hash) = rest.rsplit_once('.').ok_or(JoinTokenError::Parts)?;
        let (domain, secret) = rest.rsplit_once('.').ok_or(JoinTokenError::Parts)?;
        let mut bytes = Zeroizing::new([0_u8; 32]);
        // The estimate for 43 characters is a byte more than the 32 that they hold.
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

/// Without the secret: whoever holds it can become the workload.
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
    fn a_token_is_read_back_as_it_was_written() {
        let read: JoinToken = token().reveal().parse().unwrap();
        assert_eq!(read.trust_domain().as_str(), "a.b.test");
        assert_eq!(read.secret_sha256(), token().secret_sha256());
        assert!(read.pins(b"root") && !read.pins(b"another"));
    }

    #[test]
    fn a_token_that_was_not_copied_whole_is_refused_by_the_part_that_is_wrong() {
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
