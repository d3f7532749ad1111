use std::collections::BTreeMap;

use merlon_config::{name::TrustDomain, snapshot::TrustBundle};
use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{leaf::unix, pem};

/// Why a bundle is rejected. The previous bundle stays in force.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RootsError {
    /// An empty answer of an issuer must not make all peers untrusted, or all trusted.
    #[error("the bundle of trust domain `{0}` has no root")]
    Empty(TrustDomain),
    /// Bundles are never merged (SPIFFE Trust Domain and Bundle §4.4).
    #[error("trust domain `{0}` has two bundles")]
    Twice(TrustDomain),
    /// More roots than any rotation needs.
    #[error("the bundle of trust domain `{0}` has more than {MAX_ROOTS} roots")]
    TooMany(TrustDomain),
    /// A certificate cannot be a root.
    #[error("root {index} of trust domain `{domain}` is {why}")]
    Root {
        /// The trust domain of the bundle.
        domain: TrustDomain,
        /// The position of the root, from 1.
        index: usize,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// The roots of each trust domain. The root of one domain is never trusted for names of another.
#[derive(Debug, Clone, Default)]
pub struct TrustRoots {
    domains: BTreeMap<TrustDomain, Vec<Root>>,
    certificates: Vec<CertificateDer<'static>>,
}

impl TrustRoots {
    /// The roots of one bundle.
    ///
    /// # Errors
    /// An empty bundle, or a root that is not a self-signed CA certificate.
    pub fn from_bundle(bundle: &TrustBundle) -> Result<Self, RootsError> {
        Self::from_bundles([bundle])
    }

    /// The roots of several bundles, each for its own trust domain.
    ///
    /// # Errors
    /// See [`TrustRoots::from_bundle`]. One error rejects all bundles.
    pub fn from_bundles<'a>(
        bundles: impl IntoIterator<Item = &'a TrustBundle>,
    ) -> Result<Self, RootsError> {
        let mut roots = Self::default();
        for bundle in bundles {
            let domain = &bundle.trust_domain;
            let certificates = certificates_of(bundle)?;
            let mut own = Vec::with_capacity(certificates.len());
            for (index, certificate) in certificates {
                roots.certificates.push(certificate.clone());
                own.push(Root::parse(certificate).map_err(|why| RootsError::Root {
                    domain: domain.clone(),
                    index,
                    why,
                })?);
            }
            if roots.domains.insert(domain.clone(), own).is_some() {
                return Err(RootsError::Twice(domain.clone()));
            }
        }
        Ok(roots)
    }

    /// The trust domains with roots.
    pub fn trust_domains(&self) -> impl Iterator<Item = &TrustDomain> {
        self.domains.keys()
    }

    /// All root certificates, in the order of the bundles.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    /// The root certificates of one trust domain; none if it is unknown.
    pub fn certificates_of<'a>(
        &'a self,
        domain: &TrustDomain,
    ) -> impl Iterator<Item = &'a CertificateDer<'static>> {
        self.of(domain).iter().map(|root| &root.certificate)
    }

    /// When the last root of a trust domain expires; `None` for an unknown trust domain.
    pub fn not_after(&self, domain: &TrustDomain) -> Option<UnixTime> {
        self.of(domain).iter().map(|root| root.not_after).max()
    }

    /// The roots that are trusted for names of this trust domain; none if it is unknown.
    pub(crate) fn of(&self, domain: &TrustDomain) -> &[Root] {
        self.domains.get(domain).map_or(&[], Vec::as_slice)
    }
}

/// One root: the trust anchor for path building, and the validity, which path building does not check.
#[derive(Debug, Clone)]
pub(crate) struct Root {
    certificate: CertificateDer<'static>,
    pub(crate) anchor: TrustAnchor<'static>,
    not_before: UnixTime,
    not_after: UnixTime,
}

impl Root {
    /// Self-signed, a CA, with the right to sign certificates.
    pub(crate) fn parse(certificate: CertificateDer<'static>) -> Result<Self, &'static str> {
        let (rest, parsed) =
            X509Certificate::from_der(&certificate).map_err(|_| "not well-formed")?;
        if !rest.is_empty() {
            return Err("not well-formed: it has trailing bytes");
        }
        if !parsed.is_ca() {
            return Err("not a CA certificate");
        }
        let may_sign = parsed.key_usage().map_err(|_| "not well-formed")?;
        if may_sign.is_some_and(|usage| !usage.value.key_cert_sign()) {
            return Err("not allowed to sign certificates");
        }
        if parsed.subject() != parsed.issuer() || parsed.verify_signature(None).is_err() {
            return Err("not self-signed");
        }
        let validity = parsed.validity();
        let moment = |seconds| unix(seconds).map_err(|_| "not valid at any time after 1970");
        let (not_before, not_after) = (
            moment(validity.not_before.timestamp())?,
            moment(validity.not_after.timestamp())?,
        );
        let anchor = webpki::anchor_from_trusted_cert(&certificate)
            .map_err(|_| "not usable as a trust anchor")?
            .to_owned();
        Ok(Self {
            certificate,
            anchor,
            not_before,
            not_after,
        })
    }

    pub(crate) fn is_live(&self, now: UnixTime) -> bool {
        self.not_before <= now && now <= self.not_after
    }
}

/// Each certificate with the position of its entry, from 1. An entry may contain several certificates.
fn certificates_of(
    bundle: &TrustBundle,
) -> Result<Vec<(usize, CertificateDer<'static>)>, RootsError> {
    let domain = &bundle.trust_domain;
    let mut certificates = Vec::new();
    for (at, text) in bundle.roots.iter().enumerate() {
        let index = at + 1;
        let found = pem::certificates(text.as_bytes()).map_err(|_| RootsError::Root {
            domain: domain.clone(),
            index,
            why: "not a PEM certificate",
        })?;
        certificates.extend(found.into_iter().map(|certificate| (index, certificate)));
        if certificates.len() > MAX_ROOTS {
            return Err(RootsError::TooMany(domain.clone()));
        }
    }
    if certificates.is_empty() {
        return Err(RootsError::Empty(domain.clone()));
    }
    Ok(certificates)
}

/// Maximum per trust domain. A rotation needs two; each root is work in every handshake.
const MAX_ROOTS: usize = 16;
