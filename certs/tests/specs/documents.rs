//! Identities and bundles are verified before use; untrusted bytes never cause a panic.

use merlon_certs::{LeafFacts, PrivateKey, RootsError, SvidError, TrustRoots, X509Svid, pem};
use merlon_config::{name::SpiffeId, snapshot::TrustBundle};
use proptest::prelude::*;
use rcgen::{BasicConstraints, IsCa, KeyUsagePurpose};

use crate::support::*;

#[test]
fn an_identity_survives_a_round_trip_through_its_files() {
    let root = Authority::root("root");
    let roots = root.roots();
    let int = root.intermediate("int", |_| ());
    let svid = int.svid(WEB, &roots);
    let (chain, key) = (svid.chain_pem(), svid.key.to_pkcs8_pem().unwrap());
    let again = X509Svid::parse_pem(chain.as_bytes(), key.as_bytes(), &roots, now()).unwrap();
    assert_eq!(again.id.to_string(), WEB);
    assert_eq!((&again.serial, &again.chain), (&svid.serial, &svid.chain));
}

#[test]
fn a_saved_identity_is_rejected_after_its_expiry_or_the_removal_of_its_root() {
    let root = Authority::root("root");
    let svid = root.svid(WEB, &root.roots());
    let (chain, key) = (svid.chain_pem(), svid.key.to_pkcs8_pem().unwrap());
    let parse =
        |roots: &TrustRoots, now| X509Svid::parse_pem(chain.as_bytes(), key.as_bytes(), roots, now);
    let late = parse(&root.roots(), at(NOW * 2 + 1)).unwrap_err();
    assert!(matches!(late, SvidError::Untrusted(_)), "{late}");
    let other = Authority::root("other").roots();
    let foreign = parse(&other, now()).unwrap_err();
    assert!(matches!(foreign, SvidError::Untrusted(_)), "{foreign}");
}

#[test]
fn a_certificate_for_another_key_is_rejected() {
    let root = Authority::root("root");
    let roots = root.roots();
    let chain = root.chain(&PrivateKey::generate().unwrap(), WEB);
    let ours = PrivateKey::generate().unwrap();
    let error = X509Svid::parse(chain, ours, &roots, now()).unwrap_err();
    assert!(matches!(error, SvidError::OtherKey), "{error}");
    let nothing = X509Svid::parse(Vec::new(), PrivateKey::generate().unwrap(), &roots, now());
    assert!(matches!(nothing.unwrap_err(), SvidError::Empty));
}

#[test]
fn a_request_proves_the_key_and_names_the_workload() {
    use x509_parser::prelude::{FromDer as _, X509CertificationRequest};
    let key = PrivateKey::generate().unwrap();
    let der = key.csr(&WEB.parse().unwrap()).unwrap();
    let (rest, request) = X509CertificationRequest::from_der(&der).unwrap();
    assert!(rest.is_empty());
    request.verify_signature().unwrap();
    let info = &request.certification_request_info;
    assert_eq!(info.subject_pki.raw, key.public_key_info().unwrap());
    assert_eq!(info.subject.iter().count(), 0);
    assert!(der.windows(WEB.len()).any(|bytes| bytes == WEB.as_bytes()));
}

/// Why a bundle is rejected; empty if it is accepted.
fn rejection(bundle: &TrustBundle) -> String {
    let rejected = TrustRoots::from_bundle(bundle).err();
    rejected.map_or_else(String::new, |error| error.to_string())
}

#[test]
fn an_empty_bundle_is_rejected() {
    let empty = bundle(DOMAIN, []);
    assert_eq!(
        TrustRoots::from_bundle(&empty).unwrap_err(),
        RootsError::Empty(DOMAIN.parse().unwrap())
    );
    let blank = TrustBundle {
        roots: vec![String::new()],
        ..empty
    };
    assert!(
        rejection(&blank).contains("root 1 of trust domain `one.test` is not a PEM certificate")
    );
}

#[test]
fn only_self_signed_authorities_are_roots_and_one_invalid_root_rejects_the_bundle() {
    let root = Authority::root("root");
    let int = root.intermediate("int", |_| ());
    let no_authority = Authority::root_with("leaf", |root| root.is_ca = IsCa::ExplicitNoCa);
    let no_signer = Authority::root_with("no signer", |root| {
        root.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    });
    let same_name = root.intermediate("root", |_| ());
    for (bad, why) in [
        (&int, "not self-signed"),
        (&same_name, "not self-signed"),
        (&no_authority, "not a CA certificate"),
        (&no_signer, "not allowed to sign certificates"),
    ] {
        let rejection = rejection(&bundle(DOMAIN, [&root, bad]));
        assert_eq!(
            rejection,
            format!("root 2 of trust domain `one.test` is {why}")
        );
    }
}

#[test]
fn bundles_are_bounded_and_never_merged() {
    let root = Authority::root("root");
    let many = bundle(DOMAIN, std::iter::repeat_n(&root, 17));
    assert!(rejection(&many).contains("more than 16 roots"));
    let twice = [root.bundle(DOMAIN), root.bundle(DOMAIN)];
    let error = TrustRoots::from_bundles(&twice).unwrap_err();
    assert_eq!(error, RootsError::Twice(DOMAIN.parse().unwrap()));
}

#[test]
fn a_pem_text_survives_a_round_trip() {
    let root = Authority::root("root");
    let text = pem::certificate(&root.certificate);
    assert!(text.lines().all(|line| line.len() <= 64));
    assert_eq!(
        pem::certificates(text.as_bytes()).unwrap(),
        std::slice::from_ref(&root.certificate)
    );
    assert!(pem::certificates(b"").is_err());
    assert!(pem::certificates(b"-----BEGIN CERTIFICATE-----\n?\n").is_err());
}

/// Names as they may occur in an untrusted certificate.
fn name() -> impl Strategy<Value = String> {
    let part = "[a-zA-Z0-9.%/:@?#, -]{0,12}";
    let whole = (part, part, part)
        .prop_map(|(domain, ns, sa)| format!("spiffe://{domain}/ns/{ns}/sa/{sa}"));
    prop_oneof![whole, "spiffe://.{0,40}", ".{0,60}"]
}

proptest! {
    #[test]
    fn a_valid_name_has_exactly_one_spelling(text in name()) {
        if let Ok(id) = text.parse::<SpiffeId>() {
            prop_assert_eq!(id.to_string(), text);
        }
    }

    #[test]
    fn no_bytes_panic_the_leaf_parser(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = LeafFacts::parse(&bytes);
    }

    #[test]
    fn a_leaf_with_changed_bytes_never_panics_the_parser_and_never_gives_an_invalid_name(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        static LEAF: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        let leaf = LEAF.get_or_init(|| {
            let key = PrivateKey::generate().unwrap();
            Authority::root("root").leaf(&key, WEB, |_| ()).der().to_vec()
        });
        let mut changed = leaf.clone();
        for (at, byte) in changes {
            let at = at.index(changed.len());
            changed[at] = byte;
        }
        // If it still parses, its name is valid; the signature detects the change.
        if let Ok(facts) = LeafFacts::parse(&changed) {
            prop_assert!(facts.id.to_string().parse::<SpiffeId>().is_ok());
        }
    }
}
