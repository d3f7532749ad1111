//! Certificates, keys, and requests for them.

use std::{sync::LazyLock, time::Duration};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair},
};
use merlon_certs::{LeafFacts, PrivateKey, TrustRoots, pem};
use merlon_config::{name::SpiffeId, snapshot::TrustBundle};
use merlon_issuer::fuzzing as issuer;
use rustls_pki_types::UnixTime;

use crate::input::Input;

static ID: LazyLock<SpiffeId> = LazyLock::new(|| {
    "spiffe://one.test/ns/shop/sa/web"
        .parse()
        .expect("an identity")
});

/// Any bytes are a leaf whose name has exactly one spelling, or are rejected with an error message.
pub(crate) fn leaf(bytes: &[u8]) {
    match LeafFacts::parse(bytes) {
        Ok(facts) => {
            assert_eq!(facts.id.to_string().parse::<SpiffeId>(), Ok(facts.id));
            let longer = LeafFacts::parse(&[bytes, &[0]].concat());
            assert!(longer.is_err(), "trailing bytes");
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Any text is a bundle with at least one root, or is rejected with an error message.
pub(crate) fn bundle(bytes: &[u8]) {
    let bundle = TrustBundle {
        trust_domain: ID.trust_domain().clone(),
        roots: vec![String::from_utf8_lossy(bytes).into_owned()],
    };
    match TrustRoots::from_bundle(&bundle) {
        Ok(roots) => {
            assert!(!roots.certificates().is_empty());
            for root in roots.certificates() {
                let again = pem::certificates(pem::certificate(root).as_bytes());
                assert_eq!(again.expect("a certificate"), std::slice::from_ref(root));
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// A private key that is accepted, in PEM or DER, is the same key when it is written and read again.
pub(crate) fn private_key(bytes: &[u8]) {
    for key in [
        PrivateKey::from_pkcs8_pem(bytes),
        PrivateKey::from_pkcs8_der(bytes),
    ] {
        match key {
            Ok(key) => {
                let again = PrivateKey::from_pkcs8_der(&key.to_pkcs8_der()).expect("the same key");
                let public = key.public_key_info().expect("a public key");
                assert_eq!(again.public_key_info().expect("a public key"), public);
                assert_eq!(public.len(), P256, "ECDSA P-256");
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}

/// Length of a `SubjectPublicKeyInfo` of ECDSA P-256.
const P256: usize = 91;

/// What control plane and issuer accept as a request is for one key, and cannot be for another identity. A request that
/// starts with a byte other than 0x30 is signed here first, so that its content reaches the checks after the signature.
pub(crate) fn csr(bytes: &[u8]) {
    let der = match bytes.split_first() {
        Some((first, info)) if *first != 0x30 => signed(info),
        _ => bytes.to_vec(),
    };
    let named = merlon_control_plane::fuzzing::csr(&der, &ID);
    let signed = issuer::request(&der);
    if let (Ok(named), Ok(signed)) = (&named, &signed) {
        assert_eq!(named, signed, "one key");
        assert_eq!(signed.len(), P256);
        let id = ID.to_string();
        assert!(der.windows(id.len()).any(|part| part == id.as_bytes()));
    }
    if named.is_ok() {
        let other: SpiffeId = "spiffe://one.test/ns/shop/sa/orders"
            .parse()
            .expect("an identity");
        assert!(merlon_control_plane::fuzzing::csr(&der, &other).is_err());
    }
}

/// A `CertificationRequest` with this `CertificationRequestInfo`, signed by the key of `seeds/csr` (RFC 2986 §4.2).
fn signed(info: &[u8]) -> Vec<u8> {
    static KEY: LazyLock<EcdsaKeyPair> = LazyLock::new(|| {
        EcdsaKeyPair::from_pkcs8(
            &ECDSA_P256_SHA256_ASN1_SIGNING,
            include_bytes!("../seeds/private_key/p256.der"),
        )
        .expect("a key")
    });
    /// `ecdsa-with-SHA256` (RFC 5758 §3.2).
    const ALGORITHM: [u8; 12] = [0x30, 10, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
    let signature = KEY.sign(&SystemRandom::new(), info).expect("a signature");
    let bits = element(3, &[&[0], signature.as_ref()].concat());
    element(0x30, &[info, &ALGORITHM, &bits].concat())
}

fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len())
        .unwrap_or(u16::MAX)
        .to_be_bytes();
    let head = match length {
        [0, short] if short < 0x80 => vec![tag, short],
        [high, low] => vec![tag, 0x82, high, low],
    };
    [&head, content].concat()
}

/// What Vault answers is used only if it matches the request, and a secret is what its answer says.
pub(crate) fn vault_answer(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let code = 100 + u16::from(input.byte()) * 2;
    let answer = input.rest();
    let value: Option<serde_json::Value> = serde_json::from_slice(answer).ok();
    // serde also reads a struct from a list.
    let value = value.filter(|value| value["metadata"].is_object());
    if let (Ok(secret), Some(value)) = (issuer::secret(answer), value) {
        assert_eq!(value["metadata"]["version"], secret.version);
        for (name, text) in &secret.data {
            let own = &value["data"][name];
            assert_eq!(
                own.as_str().map_or_else(|| own.to_string(), str::to_owned),
                *text
            );
        }
    }
    let (_, message) = issuer::error(code, &String::from_utf8_lossy(answer));
    assert!(!message.is_empty() && message.chars().count() < 400 + answer.len());

    static ROOTS: LazyLock<TrustRoots> = LazyLock::new(|| {
        let bundle = TrustBundle {
            trust_domain: ID.trust_domain().clone(),
            roots: vec![include_str!("../seeds/bundle/root.pem").to_owned()],
        };
        TrustRoots::from_bundle(&bundle).expect("a root")
    });
    let csr = include_bytes!("../seeds/csr/web.der");
    let now = UnixTime::since_unix_epoch(Duration::from_secs(1_795_000_000));
    let day = Duration::from_secs(24 * 3_600);
    if let Ok(chain) = issuer::signed(answer, csr, &ID, day, ROOTS.clone(), now) {
        let facts = LeafFacts::parse(&chain[0]).expect("a leaf");
        assert_eq!(facts.id, *ID);
        assert_eq!(
            issuer::request(csr).expect("a request"),
            facts.public_key_info
        );
        assert!(facts.not_after.as_secs() <= now.as_secs() + day.as_secs() + 60);
    }
}
