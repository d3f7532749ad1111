use std::sync::Arc;

use merlon_certs::{MeshTls, PrivateKey};
use merlon_test_support::ca::Authority;
use rcgen::{BasicConstraints, CertificateParams, IsCa, SanType};
use rustls_pki_types::CertificateDer;
use serde_json::json;

use super::spiffe;

/// A root CA that issues the tests' identities.
pub(crate) struct Ca {
    authority: Authority,
    pub(crate) root: CertificateDer<'static>,
}

impl Ca {
    pub(crate) fn new() -> Self {
        Self::named("root")
    }

    /// A root CA whose certificate has this subject.
    pub(crate) fn named(subject: &str) -> Self {
        let authority = Authority::root_with(subject, |root| {
            root.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
            root.use_authority_key_identifier_extension = true;
        });
        Self {
            root: authority.certificate.clone(),
            authority,
        }
    }

    pub(crate) fn identity(&self, workload: &str) -> Arc<MeshTls> {
        self.identity_with(workload, &[])
    }

    /// An identity that trusts the roots of `trusted`, whatever its own root is.
    pub(crate) fn identity_trusting(&self, workload: &str, trusted: &Self) -> Arc<MeshTls> {
        let (own, other) = (self.identity(workload), trusted.identity(workload));
        let (svid, roots) = (Arc::clone(own.svid()), Arc::clone(other.roots()));
        Arc::new(MeshTls::new(svid, roots).unwrap())
    }

    /// An identity whose certificate is valid from the beginning of `year`.
    pub(crate) fn identity_since(&self, workload: &str, year: i32) -> Arc<MeshTls> {
        Arc::new(self.authority.identity(&spiffe(workload), |leaf| {
            leaf.not_before = rcgen::date_time_ymd(year, 1, 1);
            leaf.is_ca = IsCa::ExplicitNoCa;
            leaf.use_authority_key_identifier_extension = true;
        }))
    }

    /// An identity whose certificate also has DNS names.
    pub(crate) fn identity_with(&self, workload: &str, hosts: &[&str]) -> Arc<MeshTls> {
        let identity = self.authority.identity(&spiffe(workload), |leaf| {
            for host in hosts {
                let name = SanType::DnsName((*host).try_into().unwrap());
                leaf.subject_alt_names.push(name);
            }
            leaf.is_ca = IsCa::ExplicitNoCa;
            leaf.use_authority_key_identifier_extension = true;
        });
        Arc::new(identity)
    }

    /// A gateway certificate for a host, written to files; returns the listener's `tls` section.
    pub(crate) fn files(&self, host: &str, directory: &std::path::Path) -> serde_json::Value {
        let key = PrivateKey::generate().unwrap();
        let params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        let leaf = params.signed_by(&key, &self.authority.issuer).unwrap();
        let (certificate, private) = (directory.join("tls.crt"), directory.join("tls.key"));
        std::fs::write(&certificate, leaf.pem()).unwrap();
        std::fs::write(&private, key.to_pkcs8_pem().unwrap().as_bytes()).unwrap();
        json!({ "certificateFile": certificate, "keyFile": private })
    }
}
