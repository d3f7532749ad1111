//! The embedded certification authority: its certificates and its files.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use merlon_certs::{LeafFacts, PrivateKey, TrustRoots, X509Svid, unix_now};
use merlon_config::resource::CertificateIssuer;
use merlon_issuer::{CertIssuer, Embedded, Fault, OpenError, VaultTimes};
use x509_parser::prelude::{FromDer as _, X509Certificate};

const HOUR: Duration = Duration::from_secs(3_600);
const WEB: &str = "spiffe://one.test/ns/shop/sa/web";

fn open(folder: &Path) -> Embedded {
    Embedded::open(folder, &"one.test".parse().unwrap()).unwrap()
}

fn issued(authority: &Embedded, roots: &Embedded) -> X509Svid {
    let (key, id) = (PrivateKey::generate().unwrap(), WEB.parse().unwrap());
    let chain = authority.sign(&key.csr(&id).unwrap(), &id, HOUR).unwrap();
    let roots = TrustRoots::from_bundle(&roots.bundle()).unwrap();
    X509Svid::parse(chain, key, &roots, unix_now()).unwrap()
}

#[test]
fn a_leaf_is_backdated_and_has_no_subject_and_one_critical_name() {
    let folder = tempfile::tempdir().unwrap();
    let authority = open(folder.path());
    let svid = issued(&authority, &authority);
    let facts = LeafFacts::parse(&svid.chain[0]).unwrap();
    assert!(!facts.other_names);
    assert_eq!(
        facts.not_after.as_secs() - facts.not_before.as_secs(),
        3_600 + 300
    );
    assert_eq!(facts.serial.len(), 32);
    let (_, leaf) = X509Certificate::from_der(&svid.chain[0]).unwrap();
    assert_eq!(leaf.subject().iter().count(), 0);
    let names = leaf
        .extensions()
        .iter()
        .find(|extension| extension.oid.to_id_string() == "2.5.29.17")
        .unwrap();
    assert!(names.critical);
    assert_ne!(svid.serial, issued(&authority, &authority).serial);
}

#[test]
fn the_root_survives_a_restart_and_only_its_owner_can_read_the_key() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let before = open(&state);
    let after = open(&state);
    assert_eq!(before.bundle(), after.bundle());
    issued(&after, &before);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&state), 0o700);
    assert_eq!(mode(&state.join("ca.key")), 0o600);
    let (_, root) = x509_parser::pem::parse_x509_pem(before.bundle().roots[0].as_bytes()).unwrap();
    let root = root.parse_x509().unwrap();
    let validity = root.validity();
    let now = i64::try_from(unix_now().as_secs()).unwrap();
    assert!((now - validity.not_before.timestamp() - 86_400).abs() < 60);
    assert!(validity.not_after.timestamp() - now > 9 * 365 * 86_400);
    // A path length would prevent the cross-signing of a later root.
    let constraints = root.basic_constraints().unwrap().unwrap();
    assert_eq!(constraints.value.path_len_constraint, None);
}

#[test]
fn a_start_that_was_interrupted_between_key_and_root_is_completed() {
    let folder = tempfile::tempdir().unwrap();
    let before = open(folder.path());
    fs::remove_file(folder.path().join("ca.pem")).unwrap();
    let after = open(folder.path());
    // Both roots have the same name and key, so each verifies the leaves of the other.
    issued(&after, &before);
    issued(&before, &after);
}

fn refusal(folder: &Path, domain: &str) -> String {
    let error = Embedded::open(folder, &domain.parse().unwrap()).unwrap_err();
    assert!(matches!(error, OpenError::State { .. }), "{error}");
    error.to_string()
}

#[test]
fn a_root_that_others_trust_is_never_replaced_silently() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (key, root) = (folder.path().join("ca.key"), folder.path().join("ca.pem"));
    open(folder.path());
    open(other.path());
    let original = fs::read(&root).unwrap();

    assert!(refusal(folder.path(), "two.test").contains("is the root of another trust domain"));
    fs::copy(other.path().join("ca.pem"), &root).unwrap();
    assert!(refusal(folder.path(), "one.test").contains("is not for the key in `ca.key`"));
    fs::write(&root, "garbage").unwrap();
    assert!(refusal(folder.path(), "one.test").contains("is not exactly one certificate"));
    fs::write(&root, &original).unwrap();
    fs::write(&key, "garbage").unwrap();
    assert!(refusal(folder.path(), "one.test").contains("is not an ECDSA P-256 key"));
    fs::remove_file(&key).unwrap();
    assert!(refusal(folder.path(), "one.test").contains("exists without its key"));
    assert_eq!(fs::read(&root).unwrap(), original);
}

#[test]
fn a_request_must_prove_a_p256_key_and_its_names_are_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let authority = open(folder.path());
    let id = WEB.parse().unwrap();
    let refused = |csr: &[u8], why: &str| {
        let error = authority.sign(csr, &id, HOUR).unwrap_err();
        assert_eq!(error.fault(), Fault::Request);
        assert!(error.to_string().contains(why), "{error}");
    };
    let key = PrivateKey::generate().unwrap();
    let good = key.csr(&id).unwrap();
    refused(b"", "not well-formed");
    refused(&[good.as_slice(), b"\0"].concat(), "trailing bytes");
    refused(&vec![0x30; 20_000], "longer than 16 KiB");
    let mut forged = good;
    *forged.last_mut().unwrap() ^= 1;
    refused(&forged, "not signed by its own key");
    for algorithm in [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let other = rcgen::KeyPair::generate_for(algorithm).unwrap();
        let request = rcgen::CertificateParams::default().serialize_request(&other);
        refused(request.unwrap().der(), "not ECDSA P-256");
    }
    let foreign = "spiffe://two.test/ns/shop/sa/web".parse().unwrap();
    let error = authority
        .sign(&key.csr(&foreign).unwrap(), &foreign, HOUR)
        .unwrap_err();
    assert_eq!(error.fault(), Fault::Request);

    // The request has another name and the rights of a CA; the certificate has neither.
    let mut greedy = rcgen::CertificateParams::new(["bank.example".to_owned()]).unwrap();
    greedy.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    greedy.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let request = greedy.serialize_request(&key).unwrap();
    let chain = authority.sign(request.der(), &id, HOUR).unwrap();
    let facts = LeafFacts::parse(&chain[0]).unwrap();
    assert_eq!((facts.id, facts.other_names), (id, false));
}

#[tokio::test]
async fn its_description_says_that_it_is_for_development_only() {
    let folder = tempfile::tempdir().unwrap();
    let configured = CertificateIssuer::default();
    let trust_domain = "one.test".parse().unwrap();
    let issuer = CertIssuer::open(
        &configured,
        folder.path(),
        &trust_domain,
        VaultTimes::default(),
    );
    let issuer = issuer.await.unwrap();
    assert!(issuer.for_development());
    assert!(issuer.describe().contains("for development only"));
    assert!(!format!("{issuer:?}").contains("key"));
}
