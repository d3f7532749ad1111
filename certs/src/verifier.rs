use std::sync::Arc;

use merlon_config::name::SpiffeId;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::WebPkiSupportedAlgorithms,
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};

use crate::{
    leaf::{LeafError, LeafFacts},
    roots::{TrustRoots, anchor_of},
};

/// Judges the other side of a mesh handshake, as client or as server, by its SPIFFE ID and the roots of that ID's
/// trust domain. Host names play no part.
#[derive(Debug)]
pub struct SpiffeVerifier {
    trust: Trust,
    /// Only this identity will do.
    expected: Option<SpiffeId>,
    /// Whether a client may come without a certificate.
    anonymous: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

#[derive(Debug)]
pub(crate) enum Trust {
    Roots(Arc<TrustRoots>),
    /// SHA-256 of the one root that counts; its certificate comes with the chain.
    Pinned([u8; 32]),
}

impl SpiffeVerifier {
    pub(crate) fn new(trust: Trust, expected: Option<SpiffeId>, anonymous: bool) -> Self {
        let algorithms =
            rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
        Self {
            trust,
            expected,
            anonymous,
            algorithms,
        }
    }

    /// Accepts every identity that one of `roots` vouches for.
    pub fn any_of(roots: Arc<TrustRoots>) -> Self {
        Self::new(Trust::Roots(roots), None, false)
    }

    /// Judges a chain at a moment of time.
    ///
    /// # Errors
    /// [`Error::InvalidCertificate`]; the form of the leaf is judged first, and its fault is inside as [`LeafError`].
    pub fn check(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
        usage: Usage,
    ) -> Result<SpiffeId, Error> {
        let facts = LeafFacts::parse_chain(leaf, others).map_err(refused)?;
        let pinned;
        let anchors = match &self.trust {
            Trust::Roots(roots) => roots.of(facts.id.trust_domain()),
            Trust::Pinned(hash) => {
                pinned = [pinned_root(hash, others).map_err(refused)?];
                &pinned
            }
        };
        if anchors.is_empty() {
            return Err(refused(LeafError::UnknownTrustDomain(
                facts.id.trust_domain().to_string(),
            )));
        }
        let usage = match usage {
            Usage::Client => webpki::KeyUsage::client_auth(),
            Usage::Server => webpki::KeyUsage::server_auth(),
        };
        webpki::EndEntityCert::try_from(leaf)
            .and_then(|leaf| {
                leaf.verify_for_usage(self.algorithms.all, anchors, others, now, usage, None, None)
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

/// In which role the other side shows its certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// It connected to us.
    Client,
    /// We connected to it.
    Server,
}

fn pinned_root(
    hash: &[u8; 32],
    others: &[CertificateDer<'_>],
) -> Result<TrustAnchor<'static>, LeafError> {
    let is_pinned = |certificate: &&CertificateDer<'_>| {
        aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate).as_ref() == hash
    };
    let root = others
        .iter()
        .find(is_pinned)
        .ok_or(LeafError::PinnedRootAbsent)?;
    anchor_of(root).map_err(|_| LeafError::PinnedRootAbsent)
}

fn refused(error: LeafError) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

fn path_error(error: webpki::Error) -> Error {
    Error::InvalidCertificate(match error {
        webpki::Error::CertExpired { .. } => CertificateError::Expired,
        webpki::Error::CertNotValidYet { .. } => CertificateError::NotValidYet,
        webpki::Error::UnknownIssuer => CertificateError::UnknownIssuer,
        webpki::Error::BadDer => CertificateError::BadEncoding,
        other => CertificateError::Other(OtherError(Arc::new(other))),
    })
}

impl ClientCertVerifier for SpiffeVerifier {
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
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, leaf, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, leaf, signature, &self.algorithms)
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
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, leaf, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, leaf, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
