//! Certification authorities and the identities that they issue.

use std::{sync::Arc, time::Duration};

use merlon_certs::{CertificateDer, MeshTls, PrivateKey, TrustRoots, X509Svid, pem, unix_now};
use merlon_config::snapshot::TrustBundle;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose, SanType,
};

/// A certification authority.
#[derive(Debug)]
pub struct Authority {
    /// Signs leaves and intermediates.
    pub issuer: Issuer<'static, PrivateKey>,
    /// Its own certificate.
    pub certificate: CertificateDer<'static>,
    /// The intermediates between a leaf and the root.
    pub above: Vec<CertificateDer<'static>>,
}

impl Authority {
    /// A root.
    pub fn root(name: &str) -> Self {
        Self::root_with(name, |_| ())
    }

    /// A root with other parameters.
    pub fn root_with(name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let key = PrivateKey::generate().expect("a key");
        let mut params = ca_params(name);
        change(&mut params);
        let certificate = params.self_signed(&key).expect("a certificate");
        Self {
            certificate: certificate.der().clone(),
            issuer: Issuer::new(params, key),
            above: Vec::new(),
        }
    }

    /// An intermediate under this one.
    pub fn intermediate(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let key = PrivateKey::generate().expect("a key");
        let mut params = ca_params(name);
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let certificate = certificate.der().clone();
        let mut above = vec![certificate.clone()];
        above.extend(self.above.iter().cloned());
        Self {
            issuer: Issuer::new(params, key),
            certificate,
            above,
        }
    }

    /// A leaf as our issuers sign it, with `change`.
    pub fn leaf(
        &self,
        key: &PrivateKey,
        uri: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Certificate {
        let mut params = leaf_params(uri);
        change(&mut params);
        params.signed_by(key, &self.issuer).expect("a certificate")
    }

    /// A leaf with its intermediates.
    pub fn chain(&self, key: &PrivateKey, uri: &str) -> Vec<CertificateDer<'static>> {
        self.chain_with(key, uri, |_| ())
    }

    fn chain_with(
        &self,
        key: &PrivateKey,
        uri: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Vec<CertificateDer<'static>> {
        let mut chain = vec![self.leaf(key, uri, change).der().clone()];
        chain.extend(self.above.iter().cloned());
        chain
    }

    /// The trust bundle of a trust domain whose only root is this one.
    pub fn bundle(&self, trust_domain: &str) -> TrustBundle {
        TrustBundle {
            trust_domain: trust_domain.parse().expect("a trust domain"),
            roots: vec![pem::certificate(&self.certificate)],
        }
    }

    /// The identity of `uri` in the trust domain of this root, prepared for handshakes, with `change` to its certificate.
    pub fn identity(&self, uri: &str, change: impl FnOnce(&mut CertificateParams)) -> MeshTls {
        let key = PrivateKey::generate().expect("a key");
        let chain = self.chain_with(&key, uri, change);
        let trust_domain = uri
            .strip_prefix("spiffe://")
            .and_then(|rest| rest.split('/').next())
            .unwrap_or_else(|| panic!("a SPIFFE ID, not {uri}"));
        identity(chain, key, &self.bundle(trust_domain))
    }
}

/// An identity from the answer of an issuer: the chain, the key that it certifies, and the bundle.
///
/// # Panics
/// If they do not match.
pub fn identity(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKey,
    bundle: &TrustBundle,
) -> MeshTls {
    let roots = Arc::new(TrustRoots::from_bundle(bundle).expect("roots"));
    let svid = X509Svid::parse(chain, key, &roots, unix_now()).expect("an SVID");
    MeshTls::new(Arc::new(svid), roots).expect("TLS")
}

/// The parameters of an authority.
pub fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// The parameters of a leaf for this SPIFFE ID.
///
/// # Panics
/// If `uri` is not ASCII.
pub fn leaf_params(uri: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let uri = uri.to_owned().try_into().expect("a URI");
    params.subject_alt_names = vec![SanType::URI(uri)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    valid(&mut params, 0, FAR);
    params
}

/// Sets the validity, in seconds since 1970.
pub fn valid(params: &mut CertificateParams, from: u64, until: u64) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(from);
    params.not_after = epoch + Duration::from_secs(until);
}

/// A time in 2083, after that of every test.
const FAR: u64 = 3_580_000_000;
