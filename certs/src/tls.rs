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
    clock::time_provider,
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

/// One identity with the roots it trusts. Creates the TLS configurations of the mesh.
///
/// TLS 1.3 only, post-quantum key exchange first, no early data. No session is resumed in either direction: resumption
/// skips the verifier, so a peer whose root was removed could reconnect with a ticket.
///
/// It is immutable. A new certificate or a new bundle needs a new `MeshTls`: new handshakes use the new one, open
/// connections continue. A configuration costs some allocations; cache one per destination while its `MeshTls` is current.
pub struct MeshTls {
    svid: Arc<X509Svid>,
    roots: Arc<TrustRoots>,
    certified: Arc<SingleCertAndKey>,
    /// The chain with the roots at its end.
    with_roots: Arc<SingleCertAndKey>,
}

impl MeshTls {
    /// Prepares an identity for handshakes.
    ///
    /// # Errors
    /// [`rustls::Error`] if the key cannot sign.
    pub fn new(svid: Arc<X509Svid>, roots: Arc<TrustRoots>) -> Result<Self, rustls::Error> {
        let signer = any_ecdsa_type(&svid.key.as_der())?;
        let resolver =
            |chain| SingleCertAndKey::from(CertifiedKey::new(chain, Arc::clone(&signer)));
        let certified = Arc::new(resolver(svid.chain.clone()));
        let mut chain = svid.chain.clone();
        for root in roots.certificates_of(svid.id.trust_domain()) {
            if !chain.contains(root) {
                chain.push(root.clone());
            }
        }
        let with_roots = Arc::new(resolver(chain));
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

    /// The roots that verify peers.
    pub fn roots(&self) -> &Arc<TrustRoots> {
        &self.roots
    }

    /// The configuration of a listener whose clients must have a mesh certificate.
    ///
    /// # Errors
    /// [`rustls::Error`] if the provider lacks TLS 1.3, which ours supports.
    pub fn server_config(&self, alpn: &[&[u8]]) -> Result<Arc<ServerConfig>, rustls::Error> {
        self.server(alpn, false)
    }

    /// The configuration of the control plane, which accepts clients without a certificate for one call. A client
    /// certificate is verified as usual; a client without one has no [`MeshTls::peer_id`]. The chain ends with the roots,
    /// because a proxy with a join token only knows the hash of a root.
    ///
    /// # Errors
    /// See [`MeshTls::server_config`].
    pub fn server_config_with_optional_client_cert(
        &self,
        alpn: &[&[u8]],
    ) -> Result<Arc<ServerConfig>, rustls::Error> {
        self.server(alpn, true)
    }

    fn server(
        &self,
        alpn: &[&[u8]],
        client_cert_optional: bool,
    ) -> Result<Arc<ServerConfig>, rustls::Error> {
        let verifier = SpiffeVerifier::new(
            Trust::Roots(Arc::clone(&self.roots)),
            None,
            client_cert_optional,
        );
        let resolver = if client_cert_optional {
            &self.with_roots
        } else {
            &self.certified
        };
        let mut config =
            ServerConfig::builder_with_details(Arc::clone(provider()), time_provider())
                .with_protocol_versions(&[&rustls::version::TLS13])?
                .with_client_cert_verifier(Arc::new(verifier))
                .with_cert_resolver(Arc::clone(resolver) as _);
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        // The default, set explicitly: early data can be replayed (RFC 8446 §8).
        config.max_early_data_size = 0;
        Ok(Arc::new(config))
    }

    /// The configuration for connections to exactly this identity.
    ///
    /// # Errors
    /// See [`MeshTls::server_config`].
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
        let config = ClientConfig::builder_with_details(Arc::clone(provider()), time_provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::clone(&self.certified) as _);
        Ok(finish(config, alpn))
    }

    /// The identity of a peer, from the chain of a handshake that our verifier accepted.
    ///
    /// # Errors
    /// [`LeafError`] for an empty or malformed chain.
    pub fn peer_id(chain: &[CertificateDer<'_>]) -> Result<SpiffeId, LeafError> {
        Ok(Self::peer(chain)?.id)
    }

    /// Like [`MeshTls::peer_id`], with all facts of the leaf, such as its expiry, which a long connection must not outlive.
    ///
    /// # Errors
    /// See [`MeshTls::peer_id`].
    pub fn peer(chain: &[CertificateDer<'_>]) -> Result<LeafFacts, LeafError> {
        let leaf = chain.first();
        LeafFacts::parse(leaf.ok_or(LeafError::Encoding("the chain is empty"))?)
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

/// The trust of a proxy in the mesh before it has a certificate.
#[derive(Debug, Clone)]
pub enum Bootstrap {
    /// SHA-256 of the root's DER, from a join token. The server must send that root in its chain.
    RootHash([u8; 32]),
    /// Roots from a file.
    Roots(Arc<TrustRoots>),
}

impl Bootstrap {
    /// The configuration for the call without a client certificate. The server must be `expected`.
    ///
    /// # Errors
    /// See [`MeshTls::server_config`].
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
        let config = ClientConfig::builder_with_details(Arc::clone(provider()), time_provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        Ok(finish(config, alpn))
    }
}

fn finish(mut config: ClientConfig, alpn: &[&[u8]]) -> Arc<ClientConfig> {
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    // Identities are not host names, and must not be visible on the wire.
    config.enable_sni = false;
    Arc::new(config)
}

/// The server name for a connector. Peers are verified by SPIFFE ID, and no name is sent.
pub fn server_name() -> ServerName<'static> {
    ServerName::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
}
