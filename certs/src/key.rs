use std::fmt;

use rcgen::{
    CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType,
};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};
use zeroize::Zeroizing;

use merlon_config::name::SpiffeId;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The system could not make one.
    #[error("cannot make a key")]
    Generate(#[source] rcgen::Error),
    /// Not an ECDSA P-256 key in PKCS #8.
    #[error("not an ECDSA P-256 key in PKCS #8")]
    Parse,
    /// The request for a certificate could not be made.
    #[error("cannot make a request for a certificate")]
    Request(#[source] rcgen::Error),
}

/// A workload's private key: ECDSA P-256, wiped from memory when dropped, shown by nothing.
pub struct PrivateKey {
    pkcs8: Zeroizing<Vec<u8>>,
}

impl PrivateKey {
    /// Makes a new key.
    ///
    /// # Errors
    /// [`KeyError::Generate`] when the system's random numbers fail.
    pub fn generate() -> Result<Self, KeyError> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(KeyError::Generate)?;
        Ok(Self {
            pkcs8: Zeroizing::new(pair.serialize_der()),
        })
    }

    /// Takes a key in PKCS #8 (RFC 5958), DER.
    ///
    /// # Errors
    /// [`KeyError::Parse`] when it is not an ECDSA P-256 key.
    pub fn from_pkcs8_der(der: &[u8]) -> Result<Self, KeyError> {
        let key = Self {
            pkcs8: Zeroizing::new(der.to_vec()),
        };
        if key.pair()?.is_compatible(&PKCS_ECDSA_P256_SHA256) {
            Ok(key)
        } else {
            Err(KeyError::Parse)
        }
    }

    /// As [`PrivateKey::from_pkcs8_der`], from a PEM text.
    ///
    /// # Errors
    /// [`KeyError::Parse`] when it holds no such key.
    pub fn from_pkcs8_pem(pem: &[u8]) -> Result<Self, KeyError> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(|_| KeyError::Parse)?;
        Self::from_pkcs8_der(der.secret_pkcs8_der())
    }

    /// The key in PKCS #8, DER.
    pub fn to_pkcs8_der(&self) -> Zeroizing<Vec<u8>> {
        self.pkcs8.clone()
    }

    /// The key in PKCS #8, PEM, for a file that nobody else can read.
    ///
    /// # Errors
    /// [`KeyError::Parse`], which a key that was made or taken here does not give.
    pub fn to_pkcs8_pem(&self) -> Result<Zeroizing<String>, KeyError> {
        Ok(Zeroizing::new(self.pair()?.serialize_pem()))
    }

    /// A request (PKCS #10, RFC 2986) that proves possession of this key, DER. It carries the name as a hint for
    /// people; issuers take the name from what the caller proved.
    ///
    /// # Errors
    /// [`KeyError::Request`] when it cannot be signed.
    pub fn csr(&self, id: &SpiffeId) -> Result<Vec<u8>, KeyError> {
        let pair = self.pair()?;
        let mut request = CertificateParams::default();
        request.distinguished_name = DistinguishedName::new();
        let name = id.to_string().try_into().map_err(KeyError::Request)?;
        request.subject_alt_names = vec![SanType::URI(name)];
        let request = request
            .serialize_request(&pair)
            .map_err(KeyError::Request)?;
        Ok(request.der().to_vec())
    }

    /// SubjectPublicKeyInfo (RFC 5280 §4.1.2.7), DER: what a certificate for this key must hold.
    ///
    /// # Errors
    /// [`KeyError::Parse`], which a key that was made or taken here does not give.
    pub fn public_key_info(&self) -> Result<Vec<u8>, KeyError> {
        Ok(self.pair()?.subject_public_key_info())
    }

    pub(crate) fn rustls(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.pkcs8.to_vec()))
    }

    fn pair(&self) -> Result<KeyPair, KeyError> {
        let der = PrivatePkcs8KeyDer::from(self.pkcs8.as_slice());
        KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256)
            .map_err(|_| KeyError::Parse)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey([redacted])")
    }
}
