use std::sync::Arc;

use merlon_certs::{MeshTls, PrivateKey, TrustRoots, X509Svid};
use merlon_config::snapshot::TrustBundle;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, SanType,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use serde_json::json;

use super::{DOMAIN, spiffe};

/// A root CA that issues the tests' identities.
pub(crate) struct Ca {
    issuer: Issuer<'static, PrivateKey>,
    bundle: TrustBundle,
    pub(crate) root: CertificateDer<'static>,
}

impl Ca {
    pub(crate) fn new() -> Self {
        let key = PrivateKey::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "root");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.self_signed(&key).unwrap();
        let bundle = TrustBundle {
            trust_domain: DOMAIN.parse().unwrap(),
            roots: vec![certificate.pem()],
        };
        Self {
            issuer: Issuer::new(params, key),
            bundle,
            root: certificate.der().clone(),
        }
    }

    pub(crate) fn identity(&self, workload: &str) -> Arc<MeshTls> {
        self.identity_with(workload, &[])
    }

    /// An identity whose certificate also has DNS names.
    pub(crate) fn identity_with(&self, workload: &str, hosts: &[&str]) -> Arc<MeshTls> {
        let roots = TrustRoots::from_bundle(&self.bundle).unwrap();
        let key = PrivateKey::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(spiffe(workload).try_into().unwrap())];
        for host in hosts {
            let name = SanType::DnsName((*host).try_into().unwrap());
            params.subject_alt_names.push(name);
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        let svid = X509Svid::parse(vec![leaf.der().clone()], key, &roots, UnixTime::now()).unwrap();
        Arc::new(MeshTls::new(Arc::new(svid), Arc::new(roots)).unwrap())
    }

    /// A gateway certificate for a host, written to files; returns the listener's `tls` section.
    pub(crate) fn files(&self, host: &str, directory: &std::path::Path) -> serde_json::Value {
        let key = PrivateKey::generate().unwrap();
        let params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        let (certificate, private) = (directory.join("tls.crt"), directory.join("tls.key"));
        std::fs::write(&certificate, leaf.pem()).unwrap();
        std::fs::write(&private, key.to_pkcs8_pem().unwrap().as_bytes()).unwrap();
        json!({ "certificateFile": certificate, "keyFile": private })
    }
}
