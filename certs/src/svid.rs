use std::{fmt, sync::Arc};

use merlon_config::name::SpiffeId;
use rustls::pki_types::{CertificateDer, UnixTime};

use crate::{
    key::{KeyError, PrivateKey},
    leaf::{LeafError, LeafFacts},
    pem,
    renewal::renewal_at,
    roots::TrustRoots,
    verifier::{SpiffeVerifier, Usage},
};

/// Why a certificate and a key do not make an identity.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SvidError {
    /// There is no certificate at all.
    #[error("there is no certificate")]
    Empty,
    /// The text is not PEM.
    #[error(transparent)]
    Pem(#[from] pem::PemError),
    /// The leaf breaks a rule.
    #[error(transparent)]
    Leaf(#[from] LeafError),
    /// The key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The certificate is for another key.
    #[error("the certificate is not for this key")]
    OtherKey,
    /// No trusted root vouches for it now.
    #[error("the certificate is not trusted: {0}")]
    Untrusted(#[source] rustls::Error),
}

/// A workload's identity document with its key (X509-SVID): what a proxy shows to others.
pub struct X509Svid {
    /// Whose it is.
    pub id: SpiffeId,
    /// Leaf first; without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key.
    pub key: PrivateKey,
    /// Lower-case hexadecimal.
    pub serial: String,
    /// Valid from.
    pub not_before: UnixTime,
    /// Valid until.
    pub not_after: UnixTime,
}

impl X509Svid {
    /// Takes what an issuer returned, or what was kept in a file, as if it came from a stranger: form, key, and a path
    /// to one of `roots` at `now`.
    ///
    /// # Errors
    /// The first thing that does not hold.
    pub fn parse(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKey,
        roots: &TrustRoots,
        now: UnixTime,
    ) -> Result<Self, SvidError> {
        let (leaf, others) = chain.split_first().ok_or(SvidError::Empty)?;
        let facts = LeafFacts::parse_chain(leaf, others)?;
        if facts.public_key_info != key.public_key_info()? {
            return Err(SvidError::OtherKey);
        }
        let verifier = SpiffeVerifier::any_of(Arc::new(roots.clone()));
        for usage in [Usage::Client, Usage::Server] {
            verifier
                .check(leaf, others, now, usage)
                .map_err(SvidError::Untrusted)?;
        }
        let LeafFacts {
            id,
            serial,
            not_before,
            not_after,
            ..
        } = facts;
        Ok(Self {
            id,
            chain,
            key,
            serial,
            not_before,
            not_after,
        })
    }

    /// As [`X509Svid::parse`], of the two texts that a state directory keeps.
    ///
    /// # Errors
    /// Also when a text is not PEM.
    pub fn parse_pem(
        chain: &[u8],
        key: &[u8],
        roots: &TrustRoots,
        now: UnixTime,
    ) -> Result<Self, SvidError> {
        let chain = pem::certificates(chain)?;
        Self::parse(chain, PrivateKey::from_pkcs8_pem(key)?, roots, now)
    }

    /// The chain in PEM. The key's text is [`PrivateKey::to_pkcs8_pem`].
    pub fn chain_pem(&self) -> String {
        self.chain.iter().map(pem::certificate).collect()
    }

    /// When to ask for the next one; see [`renewal_at`].
    pub fn renewal_at(&self, random: f64) -> UnixTime {
        renewal_at(self.not_before, self.not_after, random)
    }

    /// The same with `root` at the end of the chain, for a server whose callers know only the root's hash.
    #[must_use]
    pub fn with_root(mut self, root: CertificateDer<'static>) -> Self {
        if !self.chain.contains(&root) {
            self.chain.push(root);
        }
        self
    }
}

impl fmt::Debug for X509Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("X509Svid")
            .field("id", &format_args!("{}", self.id))
            .field("serial", &self.serial)
            .field("not_after", &self.not_after.as_secs())
            .finish_non_exhaustive()
    }
}
