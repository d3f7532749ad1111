//! Who signs SVIDs: Vault or OpenBao, or the embedded CA.
#![doc = include_str!("../README.md")]

mod checks;
mod embedded;
mod error;
mod vault;
pub mod vault_setup;

use std::{path::Path, time::Duration};

use merlon_config::{
    name::{SpiffeId, TrustDomain},
    resource::CertificateIssuer,
    snapshot::TrustBundle,
};
use rustls_pki_types::CertificateDer;

pub use embedded::Embedded;
pub use error::{Fault, IssueError, OpenError};
pub use vault::{KvSecret, Vault};

/// Who signs, as `MeshConfig.certificates.issuer` chooses.
#[derive(Debug)]
pub enum CertIssuer {
    /// A root key in the control plane's state directory.
    Embedded(Box<Embedded>),
    /// Every leaf is signed by Vault or OpenBao.
    Vault(Box<Vault>),
}

impl CertIssuer {
    /// Opens what the mesh's configuration names. A Vault that cannot be reached now is no error: it is asked when
    /// something is to be signed.
    ///
    /// # Errors
    /// What no waiting mends: an unreadable state directory, a foreign root in it, a CA file or token that is missing.
    pub async fn open(
        chosen: &CertificateIssuer,
        state_dir: &Path,
        trust_domain: &TrustDomain,
    ) -> Result<Self, OpenError> {
        match chosen {
            CertificateIssuer::Embedded(_) => Ok(Self::Embedded(Box::new(Embedded::open(
                state_dir,
                trust_domain,
            )?))),
            CertificateIssuer::Vault(vault) => {
                Ok(Self::Vault(Box::new(Vault::connect(vault, trust_domain)?)))
            }
        }
    }

    /// One sentence for the log at each start.
    pub fn describe(&self) -> String {
        match self {
            Self::Embedded(issuer) => issuer.describe(),
            Self::Vault(issuer) => issuer.describe(),
        }
    }

    /// Whether this issuer is fit for more than development.
    pub fn for_development(&self) -> bool {
        matches!(self, Self::Embedded(_))
    }

    /// Has a certificate signed for the key in `csr` (PKCS #10, DER) and exactly the name `id`; the names in the
    /// request count for nothing. What comes back was checked as if it came from a stranger.
    ///
    /// Leaf first, without the root.
    ///
    /// # Errors
    /// [`IssueError`]; its [`Fault`] says whether another try can help.
    pub async fn sign(
        &self,
        csr: &[u8],
        id: &SpiffeId,
        lifetime: Duration,
    ) -> Result<Vec<CertificateDer<'static>>, IssueError> {
        match self {
            Self::Embedded(issuer) => issuer.sign(csr, id, lifetime),
            Self::Vault(issuer) => issuer.sign(csr, id, lifetime).await,
        }
    }

    /// The roots that everybody in the mesh must trust: never empty.
    ///
    /// # Errors
    /// [`IssueError`]; an empty answer is one.
    pub async fn bundle(&self) -> Result<TrustBundle, IssueError> {
        match self {
            Self::Embedded(issuer) => Ok(issuer.bundle()),
            Self::Vault(issuer) => issuer.bundle().await,
        }
    }

    /// A secret of the KV engine beside the PKI, at a path below the mesh's prefix.
    ///
    /// # Errors
    /// [`IssueError`]; the embedded CA has none.
    pub async fn secret(&self, path: &str) -> Result<KvSecret, IssueError> {
        match self {
            Self::Embedded(_) => Err(IssueError::Setup(
                "secrets come from Vault or OpenBao, and certificates are signed by the embedded CA here".to_owned(),
            )),
            Self::Vault(vault) => vault.secret(path).await,
        }
    }

    /// Whether the issuer would sign now: for a Vault its token and its role are looked at.
    ///
    /// # Errors
    /// [`IssueError`], naming the field of the role that is wrong.
    pub async fn check(&self) -> Result<(), IssueError> {
        match self {
            Self::Embedded(_) => Ok(()),
            Self::Vault(issuer) => issuer.check().await,
        }
    }

    /// Keeps what needs keeping (a Vault token is renewed at half of its life). Runs until dropped.
    pub async fn keep_alive(&self) {
        match self {
            Self::Embedded(_) => std::future::pending().await,
            Self::Vault(issuer) => issuer.keep_alive().await,
        }
    }
}
