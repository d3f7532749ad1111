//! Certification authorities and leaves for tests, valid and invalid.

use std::{sync::Arc, time::Duration};

use merlon_certs::{MeshTls, PrivateKey, TrustRoots, X509Svid, pem};
use merlon_config::snapshot::TrustBundle;
pub(crate) use merlon_test_support::ca::{Authority, leaf_params, valid};
use rcgen::{CustomExtension, SanType};
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

/// What these tests need of an authority besides certificates.
pub(crate) trait Identities {
    /// A valid identity.
    fn svid(&self, uri: &str, roots: &TrustRoots) -> X509Svid;

    /// A valid identity, prepared for handshakes.
    fn tls(&self, uri: &str, roots: &TrustRoots) -> MeshTls {
        MeshTls::new(Arc::new(self.svid(uri, roots)), Arc::new(roots.clone())).unwrap()
    }

    /// This root alone, for [`DOMAIN`].
    fn roots(&self) -> TrustRoots;
}

impl Identities for Authority {
    fn svid(&self, uri: &str, roots: &TrustRoots) -> X509Svid {
        let key = PrivateKey::generate().unwrap();
        let chain = self.chain(&key, uri);
        X509Svid::parse(chain, key, roots, now()).unwrap()
    }

    fn roots(&self) -> TrustRoots {
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
