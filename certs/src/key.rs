use std::fmt;

use aws_lc_rs::{
    encoding::AsDer as _,
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use merlon_config::name::SpiffeId;
use rcgen::{CertificateParams, DistinguishedName, PKCS_ECDSA_P256_SHA256, SanType};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _};
use zeroize::Zeroizing;

use crate::pem;

/// Errors of a private key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The system could not generate a key.
    #[error("cannot generate a key")]
    Generate,
    /// Not an ECDSA P-256 key in PKCS #8.
    #[error("not an ECDSA P-256 key in PKCS #8")]
    Parse,
    /// The certificate request could not be created.
    #[error("cannot create a certificate request")]
    Request(#[source] rcgen::Error),
}

/// A workload's private key: ECDSA P-256, zeroed on drop, never shown by `Debug`.
///
/// It cannot be cloned; share it with an `Arc`.
pub struct PrivateKey {
    pair: EcdsaKeyPair,
    pkcs8: Zeroizing<Vec<u8>>,
}

impl PrivateKey {
    /// Generates a new key.
    ///
    /// # Errors
    /// [`KeyError::Generate`] if the system provides no random numbers.
    pub fn generate() -> Result<Self, KeyError> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING)
            .map_err(|_| KeyError::Generate)?;
        Self::from_pair(pair).ok_or(KeyError::Generate)
    }

    /// Parses a key in PKCS #8 (RFC 5958), DER.
    ///
    /// # Errors
    /// [`KeyError::Parse`] if it is not an ECDSA P-256 key.
    pub fn from_pkcs8_der(der: &[u8]) -> Result<Self, KeyError> {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der)
            .map_err(|_| KeyError::Parse)?;
        Self::from_pair(pair).ok_or(KeyError::Parse)
    }

    /// Like [`PrivateKey::from_pkcs8_der`], from PEM. The caller should keep no copy of the text.
    ///
    /// # Errors
    /// [`KeyError::Parse`] if it contains no such key.
    pub fn from_pkcs8_pem(pem: &[u8]) -> Result<Self, KeyError> {
        let mut der = PrivateKeyDer::Pkcs8(
            PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(|_| KeyError::Parse)?,
        );
        let key = Self::from_pkcs8_der(der.secret_der());
        zeroize::Zeroize::zeroize(&mut der);
        key
    }

    fn from_pair(pair: EcdsaKeyPair) -> Option<Self> {
        let pkcs8 = Zeroizing::new(pair.to_pkcs8v1().ok()?.as_ref().to_vec());
        Some(Self { pair, pkcs8 })
    }

    /// The key in PKCS #8, DER.
    pub fn to_pkcs8_der(&self) -> Zeroizing<Vec<u8>> {
        self.pkcs8.clone()
    }

    /// The key in PKCS #8, PEM, for a file that only its owner can read.
    ///
    /// # Errors
    /// Currently none.
    pub fn to_pkcs8_pem(&self) -> Result<Zeroizing<String>, KeyError> {
        Ok(pem::encode("PRIVATE KEY", &self.pkcs8))
    }

    /// A certificate request (PKCS #10, RFC 2986, DER) that proves possession of this key. The name in it is only
    /// informational; issuers use the name that the caller proved.
    ///
    /// # Errors
    /// [`KeyError::Request`] if it cannot be signed.
    pub fn csr(&self, id: &SpiffeId) -> Result<Vec<u8>, KeyError> {
        let mut request = CertificateParams::default();
        request.distinguished_name = DistinguishedName::new();
        let name = id.to_string().try_into().map_err(KeyError::Request)?;
        request.subject_alt_names = vec![SanType::URI(name)];
        let request = request.serialize_request(self).map_err(KeyError::Request)?;
        Ok(request.der().to_vec())
    }

    /// SubjectPublicKeyInfo (RFC 5280 §4.1.2.7), DER, which a certificate for this key must contain.
    ///
    /// # Errors
    /// [`KeyError::Parse`], which does not occur for a generated or parsed key.
    pub fn public_key_info(&self) -> Result<Vec<u8>, KeyError> {
        let info = self
            .pair
            .public_key()
            .as_der()
            .map_err(|_| KeyError::Parse)?;
        Ok(info.as_ref().to_vec())
    }

    /// Borrowed, so rustls can create its signer without another copy of the key.
    pub(crate) fn as_der(&self) -> PrivateKeyDer<'_> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.pkcs8.as_slice()))
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey([redacted])")
    }
}

// These implementations sign requests and certificates without a copy of the key in a type of another library, which
// would not zero it.
impl rcgen::PublicKeyData for PrivateKey {
    fn der_bytes(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for PrivateKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let signature = self
            .pair
            .sign(&SystemRandom::new(), message)
            .map_err(|_| rcgen::Error::RemoteKeyError)?;
        Ok(signature.as_ref().to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_a_round_trip_through_pem_and_der() {
        let key = PrivateKey::generate().unwrap();
        let again = PrivateKey::from_pkcs8_pem(key.to_pkcs8_pem().unwrap().as_bytes()).unwrap();
        assert_eq!(
            key.public_key_info().unwrap(),
            again.public_key_info().unwrap()
        );
        let again = PrivateKey::from_pkcs8_der(&key.to_pkcs8_der()).unwrap();
        assert_eq!(
            key.public_key_info().unwrap(),
            again.public_key_info().unwrap()
        );
    }

    #[test]
    fn debug_does_not_show_the_key() {
        let key = PrivateKey::generate().unwrap();
        assert_eq!(format!("{key:?}"), "PrivateKey([redacted])");
    }

    #[test]
    fn only_p256_keys_are_accepted() {
        let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let ed25519 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        for other in [p384, ed25519] {
            assert!(PrivateKey::from_pkcs8_der(other.serialized_der()).is_err());
            assert!(PrivateKey::from_pkcs8_pem(other.serialize_pem().as_bytes()).is_err());
        }
        for garbage in [
            "",
            "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        ] {
            assert!(PrivateKey::from_pkcs8_pem(garbage.as_bytes()).is_err());
        }
    }
}
