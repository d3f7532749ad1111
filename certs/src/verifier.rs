use std::sync::Arc;

use merlon_config::name::SpiffeId;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    PeerIncompatible, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};

use crate::{
    leaf::{LeafError, LeafFacts},
    provider::provider,
    roots::{Root, TrustRoots},
};

/// Verifies the peer of a mesh handshake, client or server, by its SPIFFE ID and the roots of that ID's trust domain. Host
/// names are not checked.
#[derive(Debug)]
pub struct SpiffeVerifier {
    trust: Trust,
    /// If set, only this identity is accepted.
    expected: Option<SpiffeId>,
    /// Whether a client certificate is optional.
    anonymous: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

#[derive(Debug)]
pub(crate) enum Trust {
    Roots(Arc<TrustRoots>),
    /// SHA-256 of the only trusted root; the peer sends its certificate in the chain.
    Pinned([u8; 32]),
}

impl SpiffeVerifier {
    pub(crate) fn new(trust: Trust, expected: Option<SpiffeId>, anonymous: bool) -> Self {
        Self {
            trust,
            expected,
            anonymous,
            algorithms: provider().signature_verification_algorithms,
        }
    }

    /// Accepts every identity that one of `roots` signed.
    pub fn any_of(roots: Arc<TrustRoots>) -> Self {
        Self::new(Trust::Roots(roots), None, false)
    }

    /// Verifies a chain at the time `now`.
    ///
    /// # Errors
    /// [`Error::InvalidCertificate`]. The form of the leaf is checked first; its error contains a [`LeafError`].
    pub fn check(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
        usage: Usage,
    ) -> Result<SpiffeId, Error> {
        let facts = LeafFacts::parse_chain(leaf, others).map_err(refused)?;
        let pinned;
        let roots = match &self.trust {
            Trust::Roots(roots) => roots.of(facts.id.trust_domain()),
            Trust::Pinned(hash) => {
                pinned = [pinned_root(hash, others).map_err(refused)?];
                &pinned
            }
        };
        if roots.is_empty() {
            let domain = facts.id.trust_domain().to_string();
            return Err(refused(LeafError::UnknownTrustDomain(domain)));
        }
        let anchors = live_anchors(roots, now)?;
        let usage = match usage {
            Usage::Client => webpki::KeyUsage::client_auth(),
            Usage::Server => webpki::KeyUsage::server_auth(),
        };
        webpki::EndEntityCert::try_from(leaf)
            .and_then(|leaf| {
                leaf.verify_for_usage(
                    self.algorithms.all,
                    &anchors,
                    others,
                    now,
                    usage,
                    None,
                    None,
                )
                .map(drop)
            })
            .map_err(path_error)?;
        match &self.expected {
            Some(expected) if *expected != facts.id => Err(refused(LeafError::OtherIdentity {
                expected: Box::new(expected.clone()),
                found: Box::new(facts.id),
            })),
            _ => Ok(facts.id),
        }
    }
}

/// The role of the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// The peer connected to us.
    Client,
    /// We connected to the peer.
    Server,
}

/// The anchors of roots that are valid at `now`: path building does not check the validity of anchors.
fn live_anchors(roots: &[Root], now: UnixTime) -> Result<Vec<TrustAnchor<'_>>, Error> {
    let anchors: Vec<_> = roots
        .iter()
        .filter(|root| root.is_live(now))
        .map(|root| root.anchor.clone())
        .collect();
    if anchors.is_empty() {
        return Err(Error::InvalidCertificate(CertificateError::Expired));
    }
    Ok(anchors)
}

fn pinned_root(hash: &[u8; 32], others: &[CertificateDer<'_>]) -> Result<Root, LeafError> {
    let is_pinned = |certificate: &&CertificateDer<'_>| {
        aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate).as_ref() == hash
    };
    let root = others
        .iter()
        .find(is_pinned)
        .ok_or(LeafError::PinnedRootAbsent)?;
    Root::parse(root.clone().into_owned()).map_err(LeafError::Encoding)
}

/// Selects the variant by the alert that the peer gets: 42 for an unreadable certificate, 48 for an unknown trust domain, 46
/// for other errors. The error is kept inside for our log where the variant allows it.
fn refused(error: LeafError) -> Error {
    Error::InvalidCertificate(match error {
        LeafError::UnknownTrustDomain(_) => CertificateError::UnknownIssuer,
        LeafError::Encoding(_) => CertificateError::BadEncoding,
        error => CertificateError::Other(OtherError(Arc::new(error))),
    })
}

fn path_error(error: webpki::Error) -> Error {
    Error::InvalidCertificate(match error {
        webpki::Error::CertExpired { .. } => CertificateError::Expired,
        webpki::Error::CertNotValidYet { .. } => CertificateError::NotValidYet,
        webpki::Error::UnknownIssuer => CertificateError::UnknownIssuer,
        webpki::Error::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        webpki::Error::BadDer | webpki::Error::BadDerTime | webpki::Error::TrailingData(_) => {
            CertificateError::BadEncoding
        }
        other => CertificateError::Other(OtherError(Arc::new(other))),
    })
}

fn only_tls13() -> Error {
    Error::PeerIncompatible(PeerIncompatible::SupportedVersionsExtensionRequired)
}

impl ClientCertVerifier for SpiffeVerifier {
    /// No hints: they would reveal the trusted roots to unauthenticated peers.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        !self.anonymous
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(leaf, others, now, Usage::Client)
            .map(|_| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ServerCertVerifier for SpiffeVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(leaf, others, now, Usage::Server)
            .map(|_| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
