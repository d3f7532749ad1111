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

/// Why a certificate and a key are not an identity.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SvidError {
    /// The chain is empty.
    #[error("the chain has no certificate")]
    Empty,
    /// The text is not PEM.
    #[error(transparent)]
    Pem(#[from] pem::PemError),
    /// The leaf violates a rule.
    #[error(transparent)]
    Leaf(#[from] LeafError),
    /// The key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The certificate is for another key.
    #[error("the certificate is not for this key")]
    OtherKey,
    /// No trusted, currently valid root signed it.
    #[error("the certificate is not trusted: {0}")]
    Untrusted(#[source] rustls::Error),
}

/// A workload's identity document with its key (X509-SVID), which a proxy presents to its peers.
pub struct X509Svid {
    /// The identity.
    pub id: SpiffeId,
    /// Leaf first, without the root.
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
    /// Verifies the answer of an issuer, or the content of a file, like untrusted input: form, key, and a path to one of
    /// `roots` at `now`.
    ///
    /// # Errors
    /// The first check that fails.
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

    /// Like [`X509Svid::parse`], from the two PEM files of a state directory.
    ///
    /// # Errors
    /// Also if a text is not PEM.
    pub fn parse_pem(
        chain: &[u8],
        key: &[u8],
        roots: &TrustRoots,
        now: UnixTime,
    ) -> Result<Self, SvidError> {
        let chain = pem::certificates(chain)?;
        Self::parse(chain, PrivateKey::from_pkcs8_pem(key)?, roots, now)
    }

    /// The chain in PEM. For the key see [`PrivateKey::to_pkcs8_pem`].
    pub fn chain_pem(&self) -> String {
        self.chain.iter().map(pem::certificate).collect()
    }

    /// When to request the next certificate; see [`renewal_at`].
    pub fn renewal_at(&self, random: f64) -> UnixTime {
        renewal_at(self.not_before, self.not_after, random)
    }

    /// The same identity with `root` at the end of the chain, for a server whose clients only know the hash of the root.
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
