//! Handshakes of mesh TLS that succeed or are refused.

use std::sync::Arc;

use merlon_certs::{
    Bootstrap, H2, MERLON_H2, MERLON_TCP, MeshTls, Side, TlsFault, TrustRoots, X509Svid, fault_of,
    side_of,
};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, Error, HandshakeKind, NamedGroup,
    ProtocolVersion, ServerConfig,
    client::{Resumption, danger::ServerCertVerifier},
    crypto::aws_lc_rs,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};

use crate::support::*;

fn sha256(der: &[u8]) -> [u8; 32] {
    let digest = ::aws_lc_rs::digest::digest(&::aws_lc_rs::digest::SHA256, der);
    digest.as_ref().try_into().unwrap()
}

fn server(tls: &MeshTls) -> Arc<ServerConfig> {
    tls.server_config(&[MERLON_H2, MERLON_TCP]).unwrap()
}

fn client(tls: &MeshTls) -> Arc<ClientConfig> {
    tls.client_config(&ORDERS.parse().unwrap(), &[MERLON_H2])
        .unwrap()
}

/// A misbehaving client: any TLS version, session resumption, and a verifier that accepts any certificate.
fn rogue(
    svid: Option<&X509Svid>,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AcceptsAnyCertificate));
    let mut config = match svid {
        None => builder.with_no_client_auth(),
        Some(svid) => {
            let key = PrivatePkcs8KeyDer::from(svid.key.to_pkcs8_der().to_vec());
            builder
                .with_client_auth_cert(svid.chain.clone(), PrivateKeyDer::Pkcs8(key))
                .unwrap()
        }
    };
    config.resumption = Resumption::in_memory_sessions(8);
    config.enable_early_data = true;
    config.alpn_protocols = vec![MERLON_H2.to_vec()];
    config
}

#[derive(Debug)]
struct AcceptsAnyCertificate;

impl ServerCertVerifier for AcceptsAnyCertificate {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[test]
fn two_workloads_authenticate_each_other_over_tls13_with_a_post_quantum_key_exchange() {
    let root = Authority::root("root");
    let roots = root.roots();
    let (web, orders) = (root.tls(WEB, &roots), root.tls(ORDERS, &roots));
    let mut connected = handshake(client(&web), server(&orders)).unwrap();
    assert_eq!(connected.client_id(), WEB);
    assert_eq!(connected.server_serial(), orders.svid().serial);
    assert_eq!(
        connected.client.protocol_version(),
        Some(ProtocolVersion::TLSv1_3)
    );
    let group = connected.server.negotiated_key_exchange_group().unwrap();
    assert_eq!(group.name(), NamedGroup::X25519MLKEM768);
    assert_eq!(connected.server.alpn_protocol(), Some(MERLON_H2));
    assert_eq!(connected.server.server_name(), None);
    connected.works();
}

#[test]
fn a_client_without_a_certificate_is_refused_with_certificate_required() {
    let root = Authority::root("root");
    let orders = root.tls(ORDERS, &root.roots());
    let anonymous = rogue(None, &[&rustls::version::TLS13]);
    let refused = handshake(Arc::new(anonymous), server(&orders)).unwrap_err();
    let error = refused.server.unwrap();
    assert_eq!(fault_of(&error), TlsFault::NoClientCert);
    assert_eq!(fault_of(&error).reason(), "tls.no_client_cert");
    assert_eq!(side_of(&error), Side::Peer);
    let alert = refused.client.unwrap();
    assert_eq!(
        alert,
        Error::AlertReceived(AlertDescription::CertificateRequired)
    );
    assert_eq!(side_of(&alert), Side::Us);
}

#[test]
fn a_client_of_an_unknown_root_is_refused_with_unknown_ca() {
    let (root, impostor) = (Authority::root("root"), Authority::root("impostor"));
    let orders = root.tls(ORDERS, &root.roots());
    let both = TrustRoots::from_bundle(&bundle(DOMAIN, [&root, &impostor])).unwrap();
    let web = impostor.tls(WEB, &both);
    let refused = handshake(client(&web), server(&orders)).unwrap_err();
    assert_eq!(fault_of(&refused.server.unwrap()), TlsFault::Untrusted);
    assert_eq!(
        refused.client,
        Some(Error::AlertReceived(AlertDescription::UnknownCA))
    );
}

#[test]
fn an_expired_client_is_refused_with_certificate_expired() {
    let root = Authority::root("root");
    let roots = root.roots();
    let key = merlon_certs::PrivateKey::generate().unwrap();
    let leaf = root.leaf(&key, WEB, |leaf| valid(leaf, 0, NOW - 1_000));
    let expired = X509Svid::parse(vec![leaf.der().clone()], key, &roots, at(NOW - 2_000)).unwrap();
    let web = rogue(Some(&expired), &[&rustls::version::TLS13]);
    let orders = root.tls(ORDERS, &roots);
    let refused = handshake(Arc::new(web), server(&orders)).unwrap_err();
    assert_eq!(fault_of(&refused.server.unwrap()), TlsFault::Expired);
    assert_eq!(
        refused.client,
        Some(Error::AlertReceived(AlertDescription::CertificateExpired))
    );
}

#[test]
fn a_client_refuses_a_server_with_another_identity_than_expected() {
    let root = Authority::root("root");
    let roots = root.roots();
    let (web, mallory) = (
        root.tls(WEB, &roots),
        root.tls("spiffe://one.test/ns/shop/sa/mallory", &roots),
    );
    let refused = handshake(client(&web), server(&mallory)).unwrap_err();
    let error = refused.client.unwrap();
    assert_eq!(fault_of(&error), TlsFault::Svid);
    let Error::InvalidCertificate(CertificateError::Other(other)) = error else {
        panic!("{error:?}")
    };
    assert_eq!(
        other.0.to_string(),
        "the peer is `spiffe://one.test/ns/shop/sa/mallory`, expected `spiffe://one.test/ns/shop/sa/orders`"
    );
}

#[test]
fn tls12_is_refused_on_both_sides() {
    let root = Authority::root("root");
    let roots = root.roots();
    let (web, orders) = (root.tls(WEB, &roots), root.tls(ORDERS, &roots));
    let old = rogue(Some(web.svid()), &[&rustls::version::TLS12]);
    let refused = handshake(Arc::new(old), server(&orders)).unwrap_err();
    assert_eq!(
        fault_of(refused.server.as_ref().unwrap()),
        TlsFault::Handshake
    );

    let key = PrivatePkcs8KeyDer::from(orders.svid().key.to_pkcs8_der().to_vec());
    let old = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(orders.svid().chain.clone(), PrivateKeyDer::Pkcs8(key))
        .unwrap();
    let refused = handshake(client(&web), Arc::new(old)).unwrap_err();
    assert!(refused.client.is_some() && refused.server.is_some());
}

#[test]
fn a_peer_without_a_common_protocol_is_refused() {
    let root = Authority::root("root");
    let roots = root.roots();
    let (web, orders) = (root.tls(WEB, &roots), root.tls(ORDERS, &roots));
    let other = web.client_config(&ORDERS.parse().unwrap(), &[b"http/1.1"]);
    let refused = handshake(other.unwrap(), server(&orders)).unwrap_err();
    assert_eq!(fault_of(&refused.server.unwrap()), TlsFault::Handshake);
}

#[test]
fn no_session_is_resumed_and_no_ticket_is_sent() {
    let root = Authority::root("root");
    let roots = root.roots();
    let (web, orders) = (root.tls(WEB, &roots), root.tls(ORDERS, &roots));
    let hoarder = Arc::new(rogue(Some(web.svid()), &[&rustls::version::TLS13]));
    let listener = server(&orders);
    for _ in 0..3 {
        let mut connected = handshake(Arc::clone(&hoarder), Arc::clone(&listener)).unwrap();
        connected.works();
        assert_eq!(connected.client.tls13_tickets_received(), 0);
        let kind = connected.server.handshake_kind();
        assert_eq!(kind, Some(HandshakeKind::Full));
        assert!(!connected.client.is_early_data_accepted());
    }
}

#[test]
fn our_clients_resume_no_session_even_if_a_server_offers_it() {
    let root = Authority::root("root");
    let roots = root.roots();
    let (web, orders) = (root.tls(WEB, &roots), root.tls(ORDERS, &roots));
    let mut generous = (*server(&orders)).clone();
    generous.session_storage = rustls::server::ServerSessionMemoryCache::new(16);
    generous.send_tls13_tickets = 4;
    generous.max_early_data_size = u32::MAX;
    let (generous, caller) = (Arc::new(generous), client(&web));
    for _ in 0..3 {
        let mut connected = handshake(Arc::clone(&caller), Arc::clone(&generous)).unwrap();
        connected.works();
        let kind = connected.client.handshake_kind();
        assert_eq!(kind, Some(HandshakeKind::Full));
    }
}

#[test]
fn a_peer_whose_root_was_removed_is_refused_even_with_saved_sessions() {
    let (old, new) = (Authority::root("old"), Authority::root("new"));
    let both = TrustRoots::from_bundle(&bundle(DOMAIN, [&old, &new])).unwrap();
    let web = old.tls(WEB, &both);
    let hoarder = Arc::new(rogue(Some(web.svid()), &[&rustls::version::TLS13]));
    let orders = new.tls(ORDERS, &both);
    let mut before = handshake(Arc::clone(&hoarder), server(&orders)).unwrap();

    let orders = MeshTls::new(Arc::clone(orders.svid()), Arc::new(new.roots())).unwrap();
    let refused = handshake(hoarder, server(&orders)).unwrap_err();
    assert_eq!(fault_of(&refused.server.unwrap()), TlsFault::Untrusted);
    // The open connection works: the proxy closes it when it gets the new bundle.
    before.works();
}

#[test]
fn new_handshakes_use_a_new_certificate_and_open_connections_continue() {
    let root = Authority::root("root");
    let roots = root.roots();
    let web = root.tls(WEB, &roots);
    let first = root.tls(ORDERS, &roots);
    let mut before = handshake(client(&web), server(&first)).unwrap();
    let second = root.tls(ORDERS, &roots);
    let mut after = handshake(client(&web), server(&second)).unwrap();
    assert_eq!(before.server_serial(), first.svid().serial);
    assert_eq!(after.server_serial(), second.svid().serial);
    assert_ne!(before.server_serial(), after.server_serial());
    before.works();
    after.works();
}

#[test]
fn while_both_roots_are_published_leaves_of_both_are_accepted() {
    let (old, new) = (Authority::root("old"), Authority::root("new"));
    let both = TrustRoots::from_bundle(&bundle(DOMAIN, [&old, &new])).unwrap();
    for (caller, callee) in [(&old, &new), (&new, &old), (&new, &new)] {
        let (web, orders) = (caller.tls(WEB, &both), callee.tls(ORDERS, &both));
        handshake(client(&web), server(&orders)).unwrap().works();
    }
}

#[test]
fn the_control_planes_listener_accepts_clients_without_a_certificate_and_verifies_the_others() {
    let (root, impostor) = (Authority::root("root"), Authority::root("impostor"));
    let roots = root.roots();
    let control = root.tls(ORDERS, &roots);
    let listener = control
        .server_config_with_optional_client_cert(&[H2])
        .unwrap();
    let trust = Bootstrap::Roots(Arc::new(roots.clone()));
    let expected = ORDERS.parse().unwrap();

    let anonymous = trust.client_config(&expected, &[H2]).unwrap();
    let mut connected = handshake(anonymous, Arc::clone(&listener)).unwrap();
    assert!(connected.server.peer_certificates().is_none());
    connected.works();

    let member = root.tls(WEB, &roots);
    let member = member.client_config(&expected, &[H2]).unwrap();
    let connected = handshake(member, Arc::clone(&listener)).unwrap();
    assert_eq!(connected.client_id(), WEB);

    let both = TrustRoots::from_bundle(&bundle(DOMAIN, [&root, &impostor])).unwrap();
    let member = impostor.tls(WEB, &both);
    let member = member.client_config(&expected, &[H2]).unwrap();
    let refused = handshake(member, listener).unwrap_err();
    assert_eq!(fault_of(&refused.server.unwrap()), TlsFault::Untrusted);
}

#[test]
fn a_proxy_that_only_knows_the_hash_of_the_root_accepts_the_control_plane_and_no_other_server() {
    let root = Authority::root("root");
    let int = root.intermediate("int", |_| ());
    let roots = root.roots();
    let listener = |uri| {
        let tls = int.tls(uri, &roots);
        tls.server_config_with_optional_client_cert(&[H2]).unwrap()
    };
    let expected = ORDERS.parse().unwrap();
    let caller = |hash| {
        let trust = Bootstrap::RootHash(hash);
        trust.client_config(&expected, &[H2]).unwrap()
    };
    let pin = sha256(&root.certificate);
    handshake(caller(pin), listener(ORDERS)).unwrap().works();

    let refused = handshake(caller(pin), listener(WEB)).unwrap_err();
    assert_eq!(fault_of(&refused.client.unwrap()), TlsFault::Svid);

    // Another root, which is in the chain and signed the leaf.
    let refused = handshake(caller([7; 32]), listener(ORDERS)).unwrap_err();
    assert_eq!(fault_of(&refused.client.unwrap()), TlsFault::Untrusted);

    // The pinned certificate must be a root, not an intermediate or the leaf.
    let pin = sha256(&int.certificate);
    assert!(handshake(caller(pin), listener(ORDERS)).is_err());

    // A server that sends the pinned root with a leaf that the root did not sign.
    let impostor = Authority::root("impostor");
    let theirs = impostor.roots();
    let mut svid = impostor.svid(ORDERS, &theirs);
    svid.chain.push(root.certificate.clone());
    let tls = MeshTls::new(Arc::new(svid), Arc::new(theirs)).unwrap();
    let listener = tls.server_config_with_optional_client_cert(&[H2]).unwrap();
    let refused = handshake(caller(sha256(&root.certificate)), listener).unwrap_err();
    assert_eq!(fault_of(&refused.client.unwrap()), TlsFault::Untrusted);
}

#[test]
fn debug_of_an_identity_shows_no_key() {
    let root = Authority::root("root");
    let tls = root.tls(WEB, &root.roots());
    let shown = format!("{tls:?} {:?}", tls.svid());
    assert!(shown.contains(WEB) && shown.contains(&tls.svid().serial));
    assert!(!shown.contains("key"), "{shown}");
}
