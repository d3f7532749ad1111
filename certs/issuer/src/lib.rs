//! Certificate issuers that sign SVIDs: Vault or OpenBao, or the embedded CA.
#![doc = include_str!("../README.md")]

mod checks;
mod embedded;
mod error;
#[doc(hidden)]
pub mod fuzzing;
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
pub use vault::{KvSecret, Vault, VaultTimes};

/// The issuer that `MeshConfig.certificates.issuer` selects.
#[derive(Debug)]
pub enum CertIssuer {
    /// The embedded CA, with a root key in the control plane's state directory.
    Embedded(Box<Embedded>),
    /// Vault or OpenBao signs every leaf.
    Vault(Box<Vault>),
}

impl CertIssuer {
    /// Opens the configured issuer. An unreachable Vault is not an error: the first request is sent when a certificate is
    /// to be signed.
    ///
    /// # Errors
    /// Errors that a retry does not fix: an unreadable state directory, a root of another trust domain in it, a missing
    /// CA file or token.
    pub async fn open(
        configured: &CertificateIssuer,
        state_dir: &Path,
        trust_domain: &TrustDomain,
        times: VaultTimes,
    ) -> Result<Self, OpenError> {
        match configured {
            CertificateIssuer::Embedded(_) => Ok(Self::Embedded(Box::new(Embedded::open(
                state_dir,
                trust_domain,
            )?))),
            CertificateIssuer::Vault(vault) => {
                let vault = Vault::connect(vault, trust_domain, times)?;
                Ok(Self::Vault(Box::new(vault)))
            }
        }
    }

    /// A description for the log at each start.
    pub fn describe(&self) -> String {
        match self {
            Self::Embedded(issuer) => issuer.describe(),
            Self::Vault(issuer) => issuer.describe(),
        }
    }

    /// Whether this issuer is for development only.
    pub fn for_development(&self) -> bool {
        matches!(self, Self::Embedded(_))
    }

    /// Signs a certificate for the key in `csr` (PKCS #10, DER) with exactly the name `id`; the names in the request are
    /// ignored. The answer of the issuer is verified like untrusted input.
    ///
    /// Returns the chain, leaf first, without the root.
    ///
    /// # Errors
    /// [`IssueError`]; its [`Fault`] shows whether a retry can help.
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

    /// The roots that every proxy must trust. Never empty.
    ///
    /// # Errors
    /// [`IssueError`], also for an empty answer.
    pub async fn bundle(&self) -> Result<TrustBundle, IssueError> {
        match self {
            Self::Embedded(issuer) => Ok(issuer.bundle()),
            Self::Vault(issuer) => issuer.bundle().await,
        }
    }

    /// Reads a secret from the KV engine of the same server, at a path below the prefix of the mesh.
    ///
    /// # Errors
    /// [`IssueError`]; always for the embedded CA.
    pub async fn secret(&self, path: &str) -> Result<KvSecret, IssueError> {
        match self {
            Self::Embedded(_) => Err(IssueError::Setup(
                "secrets need Vault or OpenBao as certificate issuer, and this mesh uses the embedded CA".to_owned(),
            )),
            Self::Vault(vault) => vault.secret(path).await,
        }
    }

    /// Checks that the issuer can sign: for Vault, its token and its role.
    ///
    /// # Errors
    /// [`IssueError`], which names the wrong field of the role.
    pub async fn check(&self) -> Result<(), IssueError> {
        match self {
            Self::Embedded(_) => Ok(()),
            Self::Vault(issuer) => issuer.check().await,
        }
    }

    /// Renews the Vault token at half of its lifetime. Runs until dropped.
    pub async fn keep_alive(&self) {
        match self {
            Self::Embedded(_) => std::future::pending().await,
            Self::Vault(issuer) => issuer.keep_alive().await,
        }
    }
}

#[cfg(test)]
mod tests;
