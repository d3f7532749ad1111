//! Certification authorities and leaves for tests, valid and invalid.

use std::{sync::Arc, time::Duration};

use merlon_certs::{CertificateDer, MeshTls, PrivateKey, TrustRoots, X509Svid, pem};
use merlon_config::snapshot::TrustBundle;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose, SanType,
};
use rustls::{
    ClientConfig, ClientConnection, ServerConfig, ServerConnection,
    pki_types::{ServerName, UnixTime},
};

/// The trust domain of these tests.
pub(crate) const DOMAIN: &str = "one.test";
/// The client, in tests that need any.
pub(crate) const WEB: &str = "spiffe://one.test/ns/shop/sa/web";
/// The server, in tests that need any.
pub(crate) const ORDERS: &str = "spiffe://one.test/ns/shop/sa/orders";

/// The current time of tests that pass it, in seconds since 1970.
pub(crate) const NOW: u64 = 1_790_000_000;

pub(crate) fn now() -> UnixTime {
    at(NOW)
}

pub(crate) fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

/// Sets the validity, in seconds since 1970.
pub(crate) fn valid(params: &mut CertificateParams, from: u64, until: u64) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(from);
    params.not_after = epoch + Duration::from_secs(until);
}

/// A certification authority.
pub(crate) struct Authority {
    pub(crate) issuer: Issuer<'static, PrivateKey>,
    pub(crate) certificate: CertificateDer<'static>,
    /// The intermediates between a leaf and the root.
    pub(crate) above: Vec<CertificateDer<'static>>,
}

impl Authority {
    /// A root that is valid in all tests.
    pub(crate) fn root(name: &str) -> Self {
        Self::root_with(name, |_| ())
    }

    pub(crate) fn root_with(name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let key = PrivateKey::generate().unwrap();
        let mut params = ca_params(name);
        change(&mut params);
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self {
            issuer: Issuer::new(params, key),
            certificate,
            above: Vec::new(),
        }
    }

    /// An intermediate under this one.
    pub(crate) fn intermediate(
        &self,
        name: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Self {
        let key = PrivateKey::generate().unwrap();
        let mut params = ca_params(name);
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let mut above = vec![certificate.clone()];
        above.extend(self.above.iter().cloned());
        Self {
            issuer: Issuer::new(params, key),
            certificate,
            above,
        }
    }

    /// A leaf as our issuers sign it, with `change`.
    pub(crate) fn leaf(
        &self,
        key: &PrivateKey,
        uri: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Certificate {
        let mut params = leaf_params(uri);
        change(&mut params);
        params.signed_by(key, &self.issuer).unwrap()
    }

    /// A valid leaf with its intermediates.
    pub(crate) fn chain(&self, key: &PrivateKey, uri: &str) -> Vec<CertificateDer<'static>> {
        let mut chain = vec![self.leaf(key, uri, |_| ()).der().clone()];
        chain.extend(self.above.iter().cloned());
        chain
    }

    /// A valid identity.
    pub(crate) fn svid(&self, uri: &str, roots: &TrustRoots) -> X509Svid {
        let key = PrivateKey::generate().unwrap();
        let chain = self.chain(&key, uri);
        X509Svid::parse(chain, key, roots, now()).unwrap()
    }

    /// A valid identity, prepared for handshakes.
    pub(crate) fn tls(&self, uri: &str, roots: &TrustRoots) -> MeshTls {
        MeshTls::new(Arc::new(self.svid(uri, roots)), Arc::new(roots.clone())).unwrap()
    }

    pub(crate) fn bundle(&self, domain: &str) -> TrustBundle {
        bundle(domain, [self])
    }

    pub(crate) fn roots(&self) -> TrustRoots {
        TrustRoots::from_bundle(&self.bundle(DOMAIN)).unwrap()
    }
}

pub(crate) fn bundle<'a>(
    domain: &str,
    roots: impl IntoIterator<Item = &'a Authority>,
) -> TrustBundle {
    TrustBundle {
        trust_domain: domain.parse().unwrap(),
        roots: roots
            .into_iter()
            .map(|root| pem::certificate(&root.certificate))
            .collect(),
    }
}

pub(crate) fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

pub(crate) fn leaf_params(uri: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![self::uri(uri)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    valid(&mut params, 0, NOW * 2);
    params
}

pub(crate) fn uri(text: &str) -> SanType {
    SanType::URI(text.to_owned().try_into().unwrap())
}

/// An extension with any content, valid or not.
pub(crate) fn extension(oid: &[u64], content: &[u8], critical: bool) -> CustomExtension {
    let mut extension = CustomExtension::from_oid_content(oid, content.to_vec());
    extension.set_criticality(critical);
    extension
}

/// Both ends of a connection after the handshake.
#[derive(Debug)]
pub(crate) struct Connected {
    pub(crate) client: ClientConnection,
    pub(crate) server: ServerConnection,
}

/// The error of each end of a refused handshake.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) client: Option<rustls::Error>,
    pub(crate) server: Option<rustls::Error>,
}

/// A handshake in memory, until both ends accept or one refuses.
pub(crate) fn handshake(
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
) -> Result<Connected, Box<Refused>> {
    let name = ServerName::try_from("ignored.invalid").unwrap();
    let mut client = ClientConnection::new(client, name).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    let mut refused = Refused {
        client: None,
        server: None,
    };
    for _ in 0..10 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        refused.server = refused.server.or(feed(&wire, |bytes| {
            server.read_tls(bytes).unwrap();
            server.process_new_packets().map(drop)
        }));
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        refused.client = refused.client.or(feed(&wire, |bytes| {
            client.read_tls(bytes).unwrap();
            client.process_new_packets().map(drop)
        }));
    }
    if refused.client.is_some() || refused.server.is_some() {
        return Err(Box::new(refused));
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok(Connected { client, server })
}

fn feed(
    mut wire: &[u8],
    mut read: impl FnMut(&mut &[u8]) -> Result<(), rustls::Error>,
) -> Option<rustls::Error> {
    while !wire.is_empty() {
        if let Err(error) = read(&mut wire) {
            return Some(error);
        }
    }
    None
}

impl Connected {
    /// Sends a few bytes each way.
    pub(crate) fn works(&mut self) {
        use std::io::{Read as _, Write as _};
        let mut bytes = [0; 4];
        let mut wire = Vec::new();
        self.client.writer().write_all(b"ping").unwrap();
        self.client.write_tls(&mut wire).unwrap();
        self.server.read_tls(&mut wire.as_slice()).unwrap();
        self.server.process_new_packets().unwrap();
        self.server.reader().read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"ping");
        wire.clear();
        self.server.writer().write_all(b"pong").unwrap();
        self.server.write_tls(&mut wire).unwrap();
        self.client.read_tls(&mut wire.as_slice()).unwrap();
        self.client.process_new_packets().unwrap();
        self.client.reader().read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"pong");
    }

    /// The client identity that the server sees.
    pub(crate) fn client_id(&self) -> String {
        let chain = self.server.peer_certificates().unwrap();
        MeshTls::peer_id(chain).unwrap().to_string()
    }

    /// The serial number that the client sees.
    pub(crate) fn server_serial(&self) -> String {
        let chain = self.client.peer_certificates().unwrap();
        MeshTls::peer(chain).unwrap().serial
    }
}
