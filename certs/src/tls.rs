use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use merlon_config::name::SpiffeId;
use rustls::{
    ClientConfig, ServerConfig,
    client::Resumption,
    crypto::aws_lc_rs::sign::any_ecdsa_type,
    pki_types::{CertificateDer, ServerName},
    server::NoServerSessionStorage,
    sign::{CertifiedKey, SingleCertAndKey},
};

use crate::{
    leaf::{LeafError, LeafFacts},
    provider::provider,
    roots::TrustRoots,
    svid::X509Svid,
    verifier::{SpiffeVerifier, Trust},
};

/// ALPN of requests between proxies.
pub const MERLON_H2: &[u8] = b"merlon-h2/1";
/// ALPN of opaque bytes between proxies.
pub const MERLON_TCP: &[u8] = b"merlon-tcp/1";
/// ALPN of gRPC between proxy and control plane (RFC 9113 §3.1).
pub const H2: &[u8] = b"h2";

/// One identity with the roots it trusts: makes the TLS configurations of the mesh.
///
/// TLS 1.3 only, post-quantum key exchange first, no early data. Nothing is resumed in either direction: resumption
/// skips the verifier, and a peer whose root was withdrawn would come back through a ticket.
///
/// It does not change. A new certificate or a new bundle makes a new `MeshTls`: new handshakes take the new one, open
/// connections go on. A configuration costs some allocations; keep it, one per destination, as long as its `MeshTls` is
/// the current one.
pub struct MeshTls {
    svid: Arc<X509Svid>,
    roots: Arc<TrustRoots>,
    certified: Arc<SingleCertAndKey>,
    /// With the roots at the end of the chain.
    with_roots: Arc<SingleCertAndKey>,
}

impl MeshTls {
    /// An identity that is ready to be shown.
    ///
    /// # Errors
    /// [`rustls::Error`] when the key cannot sign.
    pub fn new(svid: Arc<X509Svid>, roots: Arc<TrustRoots>) -> Result<Self, rustls::Error> {
        let signer = any_ecdsa_type(&svid.key.lend())?;
        let shown = |chain| SingleCertAndKey::from(CertifiedKey::new(chain, Arc::clone(&signer)));
        let certified = Arc::new(shown(svid.chain.clone()));
        let mut chain = svid.chain.clone();
        for root in roots.certificates_of(svid.id.trust_domain()) {
            if !chain.contains(root) {
                chain.push(root.clone());
            }
        }
        let with_roots = Arc::new(shown(chain));
        Ok(Self {
            svid,
            roots,
            certified,
            with_roots,
        })
    }

    /// The identity document.
    pub fn svid(&self) -> &Arc<X509Svid> {
        &self.svid
    }

    /// The roots that peers are judged by.
    pub fn roots(&self) -> &Arc<TrustRoots> {
        &self.roots
    }

    /// For a listener whose peers must have a mesh certificate.
    ///
    /// # Errors
    /// [`rustls::Error`] when the provider lacks TLS 1.3, which ours does not.
    pub fn server_config(&self, alpn: &[&[u8]]) -> Result<Arc<ServerConfig>, rustls::Error> {
        self.server(alpn, false)
    }

    /// For the control plane, one of whose calls comes from peers that have no certificate yet. Whoever shows one is
    /// judged as ever; whoever shows none has no [`MeshTls::peer_id`]. The chain ends with the roots, since a proxy with
    /// a join token knows no more than the hash of one.
    ///
    /// # Errors
    /// As [`MeshTls::server_config`].
    pub fn server_config_with_strangers(
        &self,
        alpn: &[&[u8]],
    ) -> Result<Arc<ServerConfig>, rustls::Error> {
        self.server(alpn, true)
    }

    fn server(&self, alpn: &[&[u8]], strangers: bool) -> Result<Arc<ServerConfig>, rustls::Error> {
        let verifier = SpiffeVerifier::new(Trust::Roots(Arc::clone(&self.roots)), None, strangers);
        let shown = if strangers {
            &self.with_roots
        } else {
            &self.certified
        };
        let mut config = ServerConfig::builder_with_provider(Arc::clone(provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::clone(shown) as _);
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        // The default, said where it can be seen: early data can be replayed (RFC 8446 §8).
        config.max_early_data_size = 0;
        Ok(Arc::new(config))
    }

    /// For connections to exactly this identity.
    ///
    /// # Errors
    /// As [`MeshTls::server_config`].
    pub fn client_config(
        &self,
        expected: &SpiffeId,
        alpn: &[&[u8]],
    ) -> Result<Arc<ClientConfig>, rustls::Error> {
        let verifier = SpiffeVerifier::new(
            Trust::Roots(Arc::clone(&self.roots)),
            Some(expected.clone()),
            false,
        );
        let config = ClientConfig::builder_with_provider(Arc::clone(provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::clone(&self.certified) as _);
        Ok(finished(config, alpn))
    }

    /// Whose certificates these are, after a handshake that our verifier let pass.
    ///
    /// # Errors
    /// [`LeafError`] for an empty or a malformed chain.
    pub fn peer_id(chain: &[CertificateDer<'_>]) -> Result<SpiffeId, LeafError> {
        Ok(Self::peer(chain)?.id)
    }

    /// As [`MeshTls::peer_id`], with all that the leaf says: its end, say, which a long connection must not outlive.
    ///
    /// # Errors
    /// As [`MeshTls::peer_id`].
    pub fn peer(chain: &[CertificateDer<'_>]) -> Result<LeafFacts, LeafError> {
        let leaf = chain.first();
        LeafFacts::parse(leaf.ok_or(LeafError::Encoding("there is none"))?)
    }
}

impl fmt::Debug for MeshTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeshTls")
            .field("id", &self.svid.id)
            .field("serial", &self.svid.serial)
            .finish_non_exhaustive()
    }
}

/// What a proxy knows of the mesh before it has a certificate.
#[derive(Debug, Clone)]
pub enum Bootstrap {
    /// SHA-256 of the root's DER, as a join token carries it. The server must send that root with its chain.
    RootHash([u8; 32]),
    /// The roots, from a file.
    Roots(Arc<TrustRoots>),
}

impl Bootstrap {
    /// For the one call that is made without a certificate: the server must be `expected`.
    ///
    /// # Errors
    /// As [`MeshTls::server_config`].
    pub fn client_config(
        &self,
        expected: &SpiffeId,
        alpn: &[&[u8]],
    ) -> Result<Arc<ClientConfig>, rustls::Error> {
        let trust = match self {
            Self::RootHash(hash) => Trust::Pinned(*hash),
            Self::Roots(roots) => Trust::Roots(Arc::clone(roots)),
        };
        let verifier = SpiffeVerifier::new(trust, Some(expected.clone()), false);
        let config = ClientConfig::builder_with_provider(Arc::clone(provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        Ok(finished(config, alpn))
    }
}

fn finished(mut config: ClientConfig, alpn: &[&[u8]]) -> Arc<ClientConfig> {
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    // Identities are not host names; nobody on the path need learn any.
    config.enable_sni = false;
    Arc::new(config)
}

/// What to give a connector as server name: peers are known by their SPIFFE ID, and no name goes on the wire.
pub fn server_name() -> ServerName<'static> {
    ServerName::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
}
