//! Every way in which a certificate can be wrong is refused, and for its own reason.

use std::sync::Arc;

use merlon_certs::{
    CertificateDer, PrivateKey, SpiffeVerifier, TlsFault, TrustRoots, Usage, fault_of,
};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa,
    KeyUsagePurpose, NameConstraints, SanType,
};

use crate::support::*;

/// What a verifier of `one.test`, federated with `two.test`, says of a chain, in both roles.
struct World {
    root: Authority,
    foreign: Authority,
    verifier: SpiffeVerifier,
}

impl World {
    fn new() -> Self {
        let root = Authority::root("root of one");
        let foreign = Authority::root("root of two");
        let roots = [root.bundle(DOMAIN), foreign.bundle("two.test")];
        let roots = TrustRoots::from_bundles(&roots).unwrap();
        Self {
            root,
            foreign,
            verifier: SpiffeVerifier::any_of(Arc::new(roots)),
        }
    }

    fn refuses(&self, chain: &[CertificateDer<'_>], fault: TlsFault, said: &str) {
        let (leaf, others) = chain.split_first().unwrap();
        for usage in [Usage::Client, Usage::Server] {
            let error = self
                .verifier
                .check(leaf, others, now(), usage)
                .expect_err(said);
            let text = match &error {
                rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other)) => {
                    other.0.to_string()
                }
                other => other.to_string(),
            };
            assert_eq!(fault_of(&error), fault, "{text}");
            assert!(text.contains(said), "`{text}` does not say `{said}`");
        }
    }

    /// A leaf that the right root signs, wrong in one point.
    fn refuses_leaf(
        &self,
        fault: TlsFault,
        said: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) {
        let key = PrivateKey::generate().unwrap();
        let leaf = self.root.leaf(&key, WEB, change);
        self.refuses(&[leaf.der().clone()], fault, said);
    }

    fn refuses_name(&self, name: &str, said: &str) {
        self.refuses_leaf(TlsFault::Svid, said, |leaf| {
            leaf.subject_alt_names = vec![uri(name)];
        });
    }
}

#[test]
fn a_good_leaf_is_taken() {
    let world = World::new();
    let key = PrivateKey::generate().unwrap();
    let chain = world.root.chain(&key, WEB);
    let (leaf, others) = chain.split_first().unwrap();
    for usage in [Usage::Client, Usage::Server] {
        let id = world.verifier.check(leaf, others, now(), usage).unwrap();
        assert_eq!(id.to_string(), WEB);
    }
}

#[test]
fn a_leaf_without_extended_key_usage_or_with_a_host_name_beside_its_identity_is_taken() {
    let world = World::new();
    let key = PrivateKey::generate().unwrap();
    let leaf = world.root.leaf(&key, WEB, |leaf| {
        leaf.extended_key_usages.clear();
        let host = SanType::DnsName("web.shop".to_owned().try_into().unwrap());
        leaf.subject_alt_names.push(host);
    });
    let id = world.verifier.check(leaf.der(), &[], now(), Usage::Client);
    assert_eq!(id.unwrap().to_string(), WEB);
}

#[test]
fn a_leaf_must_name_exactly_one_uri() {
    let world = World::new();
    let svid = TlsFault::Svid;
    world.refuses_leaf(svid, "has 0 URI names", |leaf| {
        leaf.subject_alt_names.clear();
    });
    world.refuses_leaf(svid, "has 0 URI names", |leaf| {
        let host = SanType::DnsName("web.shop".to_owned().try_into().unwrap());
        leaf.subject_alt_names = vec![host];
    });
    world.refuses_leaf(svid, "has 2 URI names", |leaf| {
        leaf.subject_alt_names.push(uri(ORDERS));
    });
    world.refuses_leaf(svid, "has 2 URI names", |leaf| {
        leaf.subject_alt_names.push(uri(WEB));
    });
    world.refuses_leaf(svid, "has 2 URI names", |leaf| {
        leaf.subject_alt_names.push(uri("https://web.shop/"));
    });
}

#[test]
fn a_name_that_is_not_exactly_of_our_form_is_refused() {
    let world = World::new();
    for name in [
        "https://one.test/ns/shop/sa/web",
        "SPIFFE://one.test/ns/shop/sa/web",
        "spiffe:/one.test/ns/shop/sa/web",
        "spiffe://one.test",
        "spiffe://one.test/",
        "spiffe:///ns/shop/sa/web",
        "spiffe://one.test/web",
        "spiffe://one.test/ns/shop/sa/web/",
        "spiffe://one.test/ns/shop/sa/web/more",
        "spiffe://one.test/ns//sa/web",
        "spiffe://one.test/ns/shop/sa/",
        "spiffe://one.test/ns/../sa/web",
        "spiffe://one.test/ns/./sa/web",
        "spiffe://one.test/sa/web/ns/shop",
        "spiffe://one.test//ns/shop/sa/web",
        "spiffe://One.test/ns/shop/sa/web",
        "spiffe://one.test/ns/Shop/sa/web",
        "spiffe://one.test/NS/shop/SA/web",
        "spiffe://one.test:443/ns/shop/sa/web",
        "spiffe://user@one.test/ns/shop/sa/web",
        "spiffe://one.test/ns/shop/sa/web?admin=1",
        "spiffe://one.test/ns/shop/sa/web#admin",
        "spiffe://one.test/ns/shop/sa/%77eb",
        "spiffe://one.test/ns/shop%2fsa/web",
        "spiffe://one.test/ns/shop/sa/web,spiffe://one.test/ns/shop/sa/orders",
        "spiffe://one.test/ns/shop/sa/web spiffe://one.test/ns/shop/sa/orders",
        "spiffe://one.test/ns/shop/sa/web\0",
        "spiffe://one.test/ns/shop/sa/web\n",
        " spiffe://one.test/ns/shop/sa/web",
        "spiffe://one.test/ns/shop/sa/*",
        "spiffe://one.test/ns/shop/sa/-web",
        "spiffe://one_test/ns/shop/sa/web",
        "",
    ] {
        world.refuses_name(name, "the certificate's name is wrong");
    }
    let long = format!("spiffe://one.test/ns/shop/sa/{}", "a.".repeat(1_100) + "a");
    world.refuses_name(&long, "longer than 2,048 bytes");
}

#[test]
fn a_leaf_with_the_rights_of_an_authority_is_refused() {
    let world = World::new();
    let svid = TlsFault::Svid;
    world.refuses_leaf(svid, "belongs to a certification authority", |leaf| {
        leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    });
    world.refuses_leaf(svid, "`keyCertSign`", |leaf| {
        leaf.key_usages.push(KeyUsagePurpose::KeyCertSign);
    });
    world.refuses_leaf(svid, "`cRLSign`", |leaf| {
        leaf.key_usages.push(KeyUsagePurpose::CrlSign);
    });
}

#[test]
fn a_leaf_must_be_made_for_signing_handshakes_on_both_sides() {
    let world = World::new();
    let svid = TlsFault::Svid;
    world.refuses_leaf(svid, "no key usage `digitalSignature`", |leaf| {
        leaf.key_usages.clear();
    });
    world.refuses_leaf(svid, "no key usage `digitalSignature`", |leaf| {
        leaf.key_usages = vec![KeyUsagePurpose::KeyAgreement];
    });
    world.refuses_leaf(svid, "lacks server authentication", |leaf| {
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    });
    world.refuses_leaf(svid, "lacks client authentication", |leaf| {
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    world.refuses_leaf(svid, "lacks client authentication", |leaf| {
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
    });
    world.refuses_leaf(svid, "lacks client authentication", |leaf| {
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any];
    });
}

#[test]
fn a_leaf_outside_of_its_validity_is_refused_to_the_second() {
    let world = World::new();
    let expired = TlsFault::Expired;
    world.refuses_leaf(expired, "Expired", |leaf| valid(leaf, 0, NOW - 1));
    world.refuses_leaf(expired, "NotValidYet", |leaf| {
        valid(leaf, NOW + 1, NOW * 2);
    });
    let key = PrivateKey::generate().unwrap();
    let leaf = world.root.leaf(&key, WEB, |leaf| valid(leaf, NOW, NOW));
    world
        .verifier
        .check(leaf.der(), &[], now(), Usage::Client)
        .unwrap();
}

#[test]
fn only_a_root_of_the_names_own_trust_domain_vouches_for_it() {
    let world = World::new();
    let untrusted = TlsFault::Untrusted;
    let key = PrivateKey::generate().unwrap();
    // A root that nobody knows, of the right name.
    let impostor = Authority::root("root of one");
    world.refuses(&impostor.chain(&key, WEB), untrusted, "");
    // A trust domain that nobody knows, by a root that is known.
    let stranger = "spiffe://three.test/ns/shop/sa/web";
    world.refuses(
        &world.root.chain(&key, stranger),
        untrusted,
        "UnknownIssuer",
    );
    // A federated root signs one of our names, and we one of theirs.
    world.refuses(&world.foreign.chain(&key, WEB), untrusted, "UnknownIssuer");
    let theirs = "spiffe://two.test/ns/shop/sa/web";
    world.refuses(&world.root.chain(&key, theirs), untrusted, "UnknownIssuer");
    // It vouches for its own.
    let chain = world.foreign.chain(&key, theirs);
    let (leaf, others) = chain.split_first().unwrap();
    let id = world.verifier.check(leaf, others, now(), Usage::Client);
    assert_eq!(id.unwrap().to_string(), theirs);
    // Bringing the impostor's root along helps nothing.
    let mut chain = impostor.chain(&key, WEB);
    chain.push(impostor.certificate.clone());
    world.refuses(&chain, untrusted, "");
    // A leaf that signs itself.
    let leaf = leaf_params(WEB).self_signed(&key).unwrap();
    world.refuses(&[leaf.der().clone()], untrusted, "UnknownIssuer");
}

#[test]
fn a_root_past_its_end_vouches_for_nobody() {
    let dead = Authority::root_with("root", |root| valid(root, 0, NOW - 1));
    let unborn = Authority::root_with("root", |root| valid(root, NOW + 1, NOW * 2));
    let key = PrivateKey::generate().unwrap();
    for root in [&dead, &unborn] {
        let verifier = SpiffeVerifier::any_of(Arc::new(root.roots()));
        let chain = root.chain(&key, WEB);
        let error = verifier.check(&chain[0], &[], now(), Usage::Client);
        assert_eq!(fault_of(&error.unwrap_err()), TlsFault::Expired);
    }
    // Beside a living one it is merely unknown.
    let living = Authority::root("living");
    let roots = TrustRoots::from_bundle(&bundle(DOMAIN, [&dead, &living])).unwrap();
    let verifier = SpiffeVerifier::any_of(Arc::new(roots));
    let error = verifier.check(&dead.chain(&key, WEB)[0], &[], now(), Usage::Client);
    assert_eq!(fault_of(&error.unwrap_err()), TlsFault::Untrusted);
    let chain = living.chain(&key, WEB);
    verifier
        .check(&chain[0], &[], now(), Usage::Client)
        .unwrap();
}

#[test]
fn an_intermediate_must_be_in_force_and_within_its_limits() {
    let world = World::new();
    let key = PrivateKey::generate().unwrap();
    let good = world.root.intermediate("int", |_| ());
    let chain = good.chain(&key, WEB);
    let (leaf, others) = chain.split_first().unwrap();
    world
        .verifier
        .check(leaf, others, now(), Usage::Server)
        .unwrap();
    world.refuses(&chain[..1], TlsFault::Untrusted, "UnknownIssuer");

    let expired = world.root.intermediate("int", |int| valid(int, 0, NOW - 1));
    world.refuses(&expired.chain(&key, WEB), TlsFault::Expired, "Expired");

    let last = world.root.intermediate("last", |int| {
        int.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    });
    let below = last.intermediate("below", |_| ());
    world.refuses(
        &below.chain(&key, WEB),
        TlsFault::Untrusted,
        "PathLenConstraintViolated",
    );

    let workload = world.root.intermediate("workload", |int| {
        *int = leaf_params(ORDERS);
    });
    world.refuses(
        &workload.chain(&key, WEB),
        TlsFault::Untrusted,
        "EndEntityUsedAsCa",
    );

    let other_names = world.root.intermediate("constrained", |int| {
        int.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName("only.example".to_owned())],
            excluded_subtrees: Vec::new(),
        });
    });
    let leaf = other_names.leaf(&key, WEB, |leaf| {
        let host = SanType::DnsName("web.shop".to_owned().try_into().unwrap());
        leaf.subject_alt_names.push(host);
    });
    world.refuses(
        &[leaf.der().clone(), other_names.certificate.clone()],
        TlsFault::Untrusted,
        "NameConstraintViolation",
    );

    let for_clients = world.root.intermediate("for mail", |int| {
        int.extended_key_usages = vec![ExtendedKeyUsagePurpose::EmailProtection];
    });
    world.refuses(
        &for_clients.chain(&key, WEB),
        TlsFault::Untrusted,
        "RequiredEkuNotFound",
    );
}

#[test]
fn a_changed_byte_is_noticed() {
    let world = World::new();
    let key = PrivateKey::generate().unwrap();
    let leaf = world.root.leaf(&key, WEB, |_| ()).der().to_vec();
    // `web` becomes `wec`, and the signature no longer fits.
    let at = leaf
        .windows(7)
        .position(|bytes| bytes == b"/sa/web")
        .unwrap()
        + 6;
    let mut changed = leaf;
    changed[at] = b'c';
    world.refuses(&[changed.into()], TlsFault::Untrusted, "BadSignature");
}

#[test]
fn bytes_that_are_no_certificate_are_refused() {
    let world = World::new();
    let svid = TlsFault::Svid;
    let key = PrivateKey::generate().unwrap();
    let leaf = world.root.leaf(&key, WEB, |_| ()).der().to_vec();
    let trailing = [leaf.as_slice(), b"\0"].concat();
    let cut = leaf[..leaf.len() - 1].to_vec();
    for bytes in [
        trailing,
        cut,
        b"hello".to_vec(),
        vec![0x30, 0x80],
        Vec::new(),
    ] {
        world.refuses(&[bytes.into()], svid, "BadEncoding");
    }
}

#[test]
fn extensions_that_stand_twice_or_make_no_sense_are_refused() {
    let world = World::new();
    let (subject_alternative_name, key_usage) = (&[2, 5, 29, 17], &[2, 5, 29, 15]);
    let (basic_constraints, extended_key_usage) = (&[2, 5, 29, 19], &[2, 5, 29, 37]);
    let other = b"\x30\x22\x86\x20spiffe://one.test/ns/a/sa/b.c.d.e";
    let orders = extension(subject_alternative_name, other, true);
    let digital_signature = extension(key_usage, b"\x03\x02\x07\x80", true);
    let no_authority = extension(basic_constraints, b"\x30\x00", true);
    for twice in [orders, digital_signature] {
        world.refuses_leaf(TlsFault::Svid, "BadEncoding", |leaf| {
            leaf.custom_extensions = vec![twice];
        });
    }
    world.refuses_leaf(TlsFault::Svid, "BadEncoding", |leaf| {
        leaf.custom_extensions = vec![no_authority.clone(), no_authority];
    });
    for senseless in [
        extension(basic_constraints, b"\x04\x01", true),
        extension(extended_key_usage, b"garbage", false),
    ] {
        world.refuses_leaf(TlsFault::Svid, "BadEncoding", |leaf| {
            leaf.extended_key_usages.clear();
            leaf.custom_extensions = vec![senseless];
        });
    }
    // A URI whose bytes are no text.
    let name = extension(subject_alternative_name, b"\x30\x04\x86\x02\xff\xfe", true);
    world.refuses_leaf(TlsFault::Svid, "BadEncoding", |leaf| {
        leaf.subject_alt_names.clear();
        leaf.custom_extensions = vec![name];
    });
    // A limit that we do not know must not be passed over.
    let unknown = extension(&[1, 3, 6, 1, 4, 1, 99_999, 1], b"\x05\x00", true);
    world.refuses_leaf(
        TlsFault::Untrusted,
        "UnsupportedCriticalExtension",
        |leaf| {
            leaf.custom_extensions = vec![unknown];
        },
    );
}

#[test]
fn a_long_chain_is_refused_before_it_is_looked_at() {
    let world = World::new();
    let svid = TlsFault::Svid;
    let key = PrivateKey::generate().unwrap();
    let mut chain = world.root.chain(&key, WEB);
    chain.resize(10, world.root.certificate.clone());
    let (leaf, others) = chain.split_first().unwrap();
    world
        .verifier
        .check(leaf, others, now(), Usage::Client)
        .unwrap();
    chain.push(world.root.certificate.clone());
    world.refuses(&chain, svid, "has 11 certificates");

    let mut chain = world.root.chain(&key, WEB);
    chain.push(vec![0; 64 << 10].into());
    world.refuses(&chain, svid, "bytes, more than 65536");
}

#[test]
fn a_chain_of_many_equal_names_costs_little() {
    // Authorities of one name that sign one another: path building may try every order of them.
    let root = Authority::root("unknown");
    let world = World::new();
    let key = PrivateKey::generate().unwrap();
    let mut authority = root.intermediate("same", |_| ());
    for _ in 0..7 {
        authority = authority.intermediate("same", |_| ());
    }
    let chain = authority.chain(&key, WEB);
    assert_eq!(chain.len(), 9);
    world.refuses(&chain, TlsFault::Untrusted, "");
}
