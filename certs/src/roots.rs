use std::collections::BTreeMap;

use merlon_config::{name::TrustDomain, snapshot::TrustBundle};
use rustls_pki_types::{CertificateDer, TrustAnchor, pem::PemObject};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Why a bundle is refused. The one before it stays in force.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RootsError {
    /// An issuer that answers with nothing must not make everybody untrusted, or everything trusted.
    #[error("the bundle of trust domain `{0}` holds no root")]
    Empty(TrustDomain),
    /// One of them cannot be a root.
    #[error("root {index} of trust domain `{domain}` is {why}")]
    Root {
        /// Whose bundle.
        domain: TrustDomain,
        /// Which of its roots, from 1.
        index: usize,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// The roots of each trust domain. One domain's root never vouches for another's names.
#[derive(Debug, Clone, Default)]
pub struct TrustRoots {
    domains: BTreeMap<TrustDomain, Vec<TrustAnchor<'static>>>,
    certificates: Vec<CertificateDer<'static>>,
}

impl TrustRoots {
    /// The roots of one bundle.
    ///
    /// # Errors
    /// An empty bundle, or a root that is no self-issued CA certificate.
    pub fn from_bundle(bundle: &TrustBundle) -> Result<Self, RootsError> {
        Self::from_bundles([bundle])
    }

    /// The roots of several bundles, each for its own trust domain.
    ///
    /// # Errors
    /// As [`TrustRoots::from_bundle`]; all or nothing.
    pub fn from_bundles<'a>(
        bundles: impl IntoIterator<Item = &'a TrustBundle>,
    ) -> Result<Self, RootsError> {
        let mut roots = Self::default();
        for bundle in bundles {
            let domain = &bundle.trust_domain;
            if bundle.roots.is_empty() {
                return Err(RootsError::Empty(domain.clone()));
            }
            for (at, pem) in bundle.roots.iter().enumerate() {
                let wrong = |why| RootsError::Root {
                    domain: domain.clone(),
                    index: at + 1,
                    why,
                };
                let certificate = CertificateDer::from_pem_slice(pem.as_bytes())
                    .map_err(|_| wrong("not a PEM certificate"))?
                    .into_owned();
                let anchor = anchor_of(&certificate).map_err(wrong)?;
                roots
                    .domains
                    .entry(domain.clone())
                    .or_default()
                    .push(anchor);
                roots.certificates.push(certificate);
            }
        }
        Ok(roots)
    }

    /// The roots that may vouch for names of this trust domain; none when it is unknown.
    pub fn of(&self, domain: &TrustDomain) -> &[TrustAnchor<'static>] {
        self.domains.get(domain).map_or(&[], Vec::as_slice)
    }

    /// All root certificates, in the order of the bundles.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }
}

/// A root as the path builder wants it.
pub(crate) fn anchor_of(
    certificate: &CertificateDer<'_>,
) -> Result<TrustAnchor<'static>, &'static str> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| "not well-formed")?;
    if parsed.subject() != parsed.issuer() {
        return Err("not self-signed");
    }
    if !parsed.is_ca() {
        return Err("not a certification authority");
    }
    let anchor = webpki::anchor_from_trusted_cert(certificate)
        .map_err(|_| "not usable as a trust anchor")?;
    Ok(anchor.to_owned())
}
