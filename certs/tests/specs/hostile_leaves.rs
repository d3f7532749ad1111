//! Every kind of invalid certificate is refused with its own reason.

use std::sync::Arc;

use merlon_certs::{
    CertificateDer, PrivateKey, SpiffeVerifier, TlsFault, TrustRoots, Usage, fault_of,
};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa,
    KeyUsagePurpose, NameConstraints, SanType,
};

use crate::support::*;

/// A verifier of `one.test`, federated with `two.test`, that checks chains in both roles.
struct Federation {
    root: Authority,
    foreign: Authority,
    verifier: SpiffeVerifier,
}

impl Federation {
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

    fn refuses(&self, chain: &[CertificateDer<'_>], fault: TlsFault, expected: &str) {
        let (leaf, others) = chain.split_first().unwrap();
        for usage in [Usage::Client, Usage::Server] {
            let error = self
                .verifier
                .check(leaf, others, now(), usage)
                .expect_err(expected);
            let text = match &error {
                rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other)) => {
                    other.0.to_string()
                }
                other => other.to_string(),
            };
            assert_eq!(fault_of(&error), fault, "{text}");
            assert!(
                text.contains(expected),
                "`{text}` does not contain `{expected}`"
            );
        }
    }

    /// Refuses a leaf that the right root signed, with one invalid property.
    fn refuses_leaf(
        &self,
        fault: TlsFault,
        expected: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) {
        let key = PrivateKey::generate().unwrap();
        let leaf = self.root.leaf(&key, WEB, change);
        self.refuses(&[leaf.der().clone()], fault, expected);
    }

    fn refuses_name(&self, name: &str, expected: &str) {
        self.refuses_leaf(TlsFault::Svid, expected, |leaf| {
            leaf.subject_alt_names = vec![uri(name)];
        });
    }
}

#[test]
fn a_valid_leaf_is_accepted() {
    let federation = Federation::new();
    let key = PrivateKey::generate().unwrap();
    let chain = federation.root.chain(&key, WEB);
    let (leaf, others) = chain.split_first().unwrap();
    for usage in [Usage::Client, Usage::Server] {
        let id = federation
            .verifier
            .check(leaf, others, now(), usage)
            .unwrap();
        assert_eq!(id.to_string(), WEB);
    }
}

#[test]
fn a_leaf_without_extended_key_usage_or_with_an_additional_host_name_is_accepted() {
    let federation = Federation::new();
    let key = PrivateKey::generate().unwrap();
    let leaf = federation.root.leaf(&key, WEB, |leaf| {
        leaf.extended_key_usages.clear();
        let host = SanType::DnsName("web.shop".to_owned().try_into().unwrap());
        leaf.subject_alt_names.push(host);
    });
    let id = federation
        .verifier
        .check(leaf.der(), &[], now(), Usage::Client);
    assert_eq!(id.unwrap().to_string(), WEB);
}

#[test]
fn a_leaf_must_have_exactly_one_uri() {
    let federation = Federation::new();
    let svid = TlsFault::Svid;
    federation.refuses_leaf(svid, "has 0 URI names", |leaf| {
        leaf.subject_alt_names.clear();
    });
    federation.refuses_leaf(svid, "has 0 URI names", |leaf| {
        let host = SanType::DnsName("web.shop".to_owned().try_into().unwrap());
        leaf.subject_alt_names = vec![host];
    });
    federation.refuses_leaf(svid, "has 2 URI names", |leaf| {
        leaf.subject_alt_names.push(uri(ORDERS));
    });
    federation.refuses_leaf(svid, "has 2 URI names", |leaf| {
        leaf.subject_alt_names.push(uri(WEB));
    });
    federation.refuses_leaf(svid, "has 2 URI names", |leaf| {
        leaf.subject_alt_names.push(uri("https://web.shop/"));
    });
}

#[test]
fn a_name_of_another_form_is_refused() {
    let federation = Federation::new();
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
        federation.refuses_name(name, "the certificate's name is invalid");
    }
    let long = format!("spiffe://one.test/ns/shop/sa/{}", "a.".repeat(1_100) + "a");
    federation.refuses_name(&long, "longer than 2,048 bytes");
}

#[test]
fn a_leaf_with_the_rights_of_an_authority_is_refused() {
    let federation = Federation::new();
    let svid = TlsFault::Svid;
    federation.refuses_leaf(svid, "is a CA certificate", |leaf| {
        leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    });
    federation.refuses_leaf(svid, "`keyCertSign`", |leaf| {
        leaf.key_usages.push(KeyUsagePurpose::KeyCertSign);
    });
    federation.refuses_leaf(svid, "`cRLSign`", |leaf| {
        leaf.key_usages.push(KeyUsagePurpose::CrlSign);
    });
}

#[test]
fn a_leaf_must_allow_handshakes_as_client_and_server() {
    let federation = Federation::new();
    let svid = TlsFault::Svid;
    federation.refuses_leaf(svid, "no key usage `digitalSignature`", |leaf| {
        leaf.key_usages.clear();
    });
    federation.refuses_leaf(svid, "no key usage `digitalSignature`", |leaf| {
        leaf.key_usages = vec![KeyUsagePurpose::KeyAgreement];
    });
    federation.refuses_leaf(svid, "lacks server authentication", |leaf| {
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    });
    federation.refuses_leaf(svid, "lacks client authentication", |leaf| {
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    federation.refuses_leaf(svid, "lacks client authentication", |leaf| {
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
    });
    federation.refuses_leaf(svid, "lacks client authentication", |leaf| {
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any];
    });
}

#[test]
fn a_leaf_outside_its_validity_is_refused_with_a_precision_of_one_second() {
    let federation = Federation::new();
    let expired = TlsFault::Expired;
    federation.refuses_leaf(expired, "Expired", |leaf| valid(leaf, 0, NOW - 1));
    federation.refuses_leaf(expired, "NotValidYet", |leaf| {
        valid(leaf, NOW + 1, NOW * 2);
    });
    let key = PrivateKey::generate().unwrap();
    let leaf = federation
        .root
        .leaf(&key, WEB, |leaf| valid(leaf, NOW, NOW));
    federation
        .verifier
        .check(leaf.der(), &[], now(), Usage::Client)
        .unwrap();
}

#[test]
fn only_a_root_of_its_own_trust_domain_is_trusted_for_a_name() {
    let federation = Federation::new();
    let untrusted = TlsFault::Untrusted;
    let key = PrivateKey::generate().unwrap();
    // An unknown root with the same name.
    let impostor = Authority::root("root of one");
    federation.refuses(&impostor.chain(&key, WEB), untrusted, "");
    // A known root signs a name of an unknown trust domain.
    let unknown = "spiffe://three.test/ns/shop/sa/web";
    federation.refuses(
        &federation.root.chain(&key, unknown),
        untrusted,
        "UnknownIssuer",
    );
    // A federated root signs a name of our trust domain, and our root one of theirs.
    federation.refuses(
        &federation.foreign.chain(&key, WEB),
        untrusted,
        "UnknownIssuer",
    );
    let theirs = "spiffe://two.test/ns/shop/sa/web";
    federation.refuses(
        &federation.root.chain(&key, theirs),
        untrusted,
        "UnknownIssuer",
    );
    // It is trusted for its own trust domain.
    let chain = federation.foreign.chain(&key, theirs);
    let (leaf, others) = chain.split_first().unwrap();
    let id = federation
        .verifier
        .check(leaf, others, now(), Usage::Client);
    assert_eq!(id.unwrap().to_string(), theirs);
    // The impostor's root in the chain makes no difference.
    let mut chain = impostor.chain(&key, WEB);
    chain.push(impostor.certificate.clone());
    federation.refuses(&chain, untrusted, "");
    // A self-signed leaf.
    let leaf = leaf_params(WEB).self_signed(&key).unwrap();
    federation.refuses(&[leaf.der().clone()], untrusted, "UnknownIssuer");
}

#[test]
fn a_root_outside_its_validity_is_not_trusted() {
    let expired = Authority::root_with("root", |root| valid(root, 0, NOW - 1));
    let future = Authority::root_with("root", |root| valid(root, NOW + 1, NOW * 2));
    let key = PrivateKey::generate().unwrap();
    for root in [&expired, &future] {
        let verifier = SpiffeVerifier::any_of(Arc::new(root.roots()));
        let chain = root.chain(&key, WEB);
        let error = verifier.check(&chain[0], &[], now(), Usage::Client);
        assert_eq!(fault_of(&error.unwrap_err()), TlsFault::Expired);
    }
    // Together with a valid root, the expired one is unknown.
    let valid = Authority::root("valid");
    let roots = TrustRoots::from_bundle(&bundle(DOMAIN, [&expired, &valid])).unwrap();
    let verifier = SpiffeVerifier::any_of(Arc::new(roots));
    let error = verifier.check(&expired.chain(&key, WEB)[0], &[], now(), Usage::Client);
    assert_eq!(fault_of(&error.unwrap_err()), TlsFault::Untrusted);
    let chain = valid.chain(&key, WEB);
    verifier
        .check(&chain[0], &[], now(), Usage::Client)
        .unwrap();
}

#[test]
fn an_intermediate_must_be_valid_and_within_its_constraints() {
    let federation = Federation::new();
    let key = PrivateKey::generate().unwrap();
    let good = federation.root.intermediate("int", |_| ());
    let chain = good.chain(&key, WEB);
    let (leaf, others) = chain.split_first().unwrap();
    federation
        .verifier
        .check(leaf, others, now(), Usage::Server)
        .unwrap();
    federation.refuses(&chain[..1], TlsFault::Untrusted, "UnknownIssuer");

    let expired = federation
        .root
        .intermediate("int", |int| valid(int, 0, NOW - 1));
    federation.refuses(&expired.chain(&key, WEB), TlsFault::Expired, "Expired");

    let last = federation.root.intermediate("last", |int| {
        int.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    });
    let below = last.intermediate("below", |_| ());
    federation.refuses(
        &below.chain(&key, WEB),
        TlsFault::Untrusted,
        "PathLenConstraintViolated",
    );

    let workload = federation.root.intermediate("workload", |int| {
        *int = leaf_params(ORDERS);
    });
    federation.refuses(
        &workload.chain(&key, WEB),
        TlsFault::Untrusted,
        "EndEntityUsedAsCa",
    );

    let other_names = federation.root.intermediate("constrained", |int| {
        int.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName("only.example".to_owned())],
            excluded_subtrees: Vec::new(),
        });
    });
    let leaf = other_names.leaf(&key, WEB, |leaf| {
        let host = SanType::DnsName("web.shop".to_owned().try_into().unwrap());
        leaf.subject_alt_names.push(host);
    });
    federation.refuses(
        &[leaf.der().clone(), other_names.certificate.clone()],
        TlsFault::Untrusted,
        "NameConstraintViolation",
    );

    let for_clients = federation.root.intermediate("for mail", |int| {
        int.extended_key_usages = vec![ExtendedKeyUsagePurpose::EmailProtection];
    });
    federation.refuses(
        &for_clients.chain(&key, WEB),
        TlsFault::Untrusted,
        "RequiredEkuNotFound",
    );
}

#[test]
fn a_changed_byte_is_detected() {
    let federation = Federation::new();
    let key = PrivateKey::generate().unwrap();
    let leaf = federation.root.leaf(&key, WEB, |_| ()).der().to_vec();
    // `web` becomes `wec`, so the signature is invalid.
    let at = leaf
        .windows(7)
        .position(|bytes| bytes == b"/sa/web")
        .unwrap()
        + 6;
    let mut changed = leaf;
    changed[at] = b'c';
    federation.refuses(&[changed.into()], TlsFault::Untrusted, "BadSignature");
}

#[test]
fn bytes_that_are_not_a_certificate_are_refused() {
    let federation = Federation::new();
    let svid = TlsFault::Svid;
    let key = PrivateKey::generate().unwrap();
    let leaf = federation.root.leaf(&key, WEB, |_| ()).der().to_vec();
    let trailing = [leaf.as_slice(), b"\0"].concat();
    let cut = leaf[..leaf.len() - 1].to_vec();
    for bytes in [
        trailing,
        cut,
        b"hello".to_vec(),
        vec![0x30, 0x80],
        Vec::new(),
    ] {
        federation.refuses(&[bytes.into()], svid, "BadEncoding");
    }
}

#[test]
fn duplicate_and_malformed_extensions_are_refused() {
    let federation = Federation::new();
    let (subject_alternative_name, key_usage) = (&[2, 5, 29, 17], &[2, 5, 29, 15]);
    let (basic_constraints, extended_key_usage) = (&[2, 5, 29, 19], &[2, 5, 29, 37]);
    let other = b"\x30\x22\x86\x20spiffe://one.test/ns/a/sa/b.c.d.e";
    let orders = extension(subject_alternative_name, other, true);
    let digital_signature = extension(key_usage, b"\x03\x02\x07\x80", true);
    let no_authority = extension(basic_constraints, b"\x30\x00", true);
    for twice in [orders, digital_signature] {
        federation.refuses_leaf(TlsFault::Svid, "BadEncoding", |leaf| {
            leaf.custom_extensions = vec![twice];
        });
    }
    federation.refuses_leaf(TlsFault::Svid, "BadEncoding", |leaf| {
        leaf.custom_extensions = vec![no_authority.clone(), no_authority];
    });
    for malformed in [
        extension(basic_constraints, b"\x04\x01", true),
        extension(extended_key_usage, b"garbage", false),
    ] {
        federation.refuses_leaf(TlsFault::Svid, "BadEncoding", |leaf| {
            leaf.extended_key_usages.clear();
            leaf.custom_extensions = vec![malformed];
        });
    }
    // A URI that is not valid text.
    let name = extension(subject_alternative_name, b"\x30\x04\x86\x02\xff\xfe", true);
    federation.refuses_leaf(TlsFault::Svid, "BadEncoding", |leaf| {
        leaf.subject_alt_names.clear();
        leaf.custom_extensions = vec![name];
    });
    // An unknown critical extension must not be ignored.
    let unknown = extension(&[1, 3, 6, 1, 4, 1, 99_999, 1], b"\x05\x00", true);
    federation.refuses_leaf(
        TlsFault::Untrusted,
        "UnsupportedCriticalExtension",
        |leaf| {
            leaf.custom_extensions = vec![unknown];
        },
    );
}

#[test]
fn a_long_chain_is_refused_before_it_is_parsed() {
    let federation = Federation::new();
    let svid = TlsFault::Svid;
    let key = PrivateKey::generate().unwrap();
    let mut chain = federation.root.chain(&key, WEB);
    chain.resize(10, federation.root.certificate.clone());
    let (leaf, others) = chain.split_first().unwrap();
    federation
        .verifier
        .check(leaf, others, now(), Usage::Client)
        .unwrap();
    chain.push(federation.root.certificate.clone());
    federation.refuses(&chain, svid, "has 11 certificates");

    let mut chain = federation.root.chain(&key, WEB);
    chain.push(vec![0; 64 << 10].into());
    federation.refuses(&chain, svid, "bytes, more than 65536");
}

#[test]
fn a_chain_of_authorities_with_equal_names_is_verified_in_bounded_time() {
    // Authorities with one name, some of them several times: path building tries each certificate at each step. With the
    // maximum of ten certificates, these numbers cost the most signatures, 91: 9 + 2·7 + 4·5 + 8·3 + 8·2 + 8·1.
    let federation = Federation::new();
    let key = PrivateKey::generate().unwrap();
    let mut authority = Authority::root("unknown");
    let mut others = Vec::new();
    for times in [1, 1, 1, 2, 2, 2] {
        authority = authority.intermediate("same", |_| ());
        others.extend(std::iter::repeat_n(authority.certificate.clone(), times));
    }
    let leaf = authority.leaf(&key, WEB, |_| ());
    let mut chain = vec![leaf.der().clone()];
    chain.extend(others);
    assert_eq!(chain.len(), 10);
    // Every path was tried, within the 100 signatures that path building may check.
    federation.refuses(&chain, TlsFault::Untrusted, "UnknownIssuer");
}
