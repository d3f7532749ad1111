use std::time::Duration;

use merlon_config::name::{NameError, SpiffeId};
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::{
    extensions::{GeneralName, KeyUsage, ParsedExtension},
    prelude::{FromDer, X509Certificate},
};

/// Why a certificate is not an X.509-SVID of a workload (X509-SVID §2–5).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each variant says itself")]
pub enum LeafError {
    #[error("the certificate is not well-formed")]
    Encoding,
    #[error("the certificate has {0} URI names instead of one")]
    UriNames(usize),
    #[error("the certificate's name is wrong: {0}")]
    Name(#[from] NameError),
    #[error("the certificate belongs to a certification authority")]
    Authority,
    #[error("the certificate may sign certificates or revocation lists")]
    MaySign,
    #[error("the certificate has no key usage `digitalSignature`")]
    NoDigitalSignature,
    #[error("the certificate's extended key usage lacks client or server authentication")]
    ExtendedKeyUsage,
    #[error("the certificate chain has {0} certificates, more than {MOST_CERTIFICATES}")]
    ChainLength(usize),
    #[error("the certificate chain has {0} bytes, more than {MOST_BYTES}")]
    ChainSize(usize),
    #[error("the peer is `{found}` where `{expected}` was expected")]
    OtherIdentity {
        expected: Box<SpiffeId>,
        found: Box<SpiffeId>,
    },
    #[error("no root of trust domain `{0}` is known")]
    UnknownTrustDomain(String),
    #[error("the certificate of the pinned root is not in the chain")]
    PinnedRootAbsent,
}

/// What stands in a leaf that passed every rule that needs no root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafFacts {
    /// Whose it is.
    pub id: SpiffeId,
    /// SubjectPublicKeyInfo, DER.
    pub public_key_info: Vec<u8>,
    /// Lower-case hexadecimal, as it stands in the certificate.
    pub serial: String,
    /// Valid from.
    pub not_before: UnixTime,
    /// Valid until.
    pub not_after: UnixTime,
}

impl LeafFacts {
    /// Reads a leaf and judges its form: one URI name and that a SPIFFE ID of the mesh, no CA, no right to sign,
    /// `digitalSignature`, and both authentications where an extended key usage is given.
    ///
    /// Whether a trusted root vouches for it is another question.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn parse(der: &[u8]) -> Result<Self, LeafError> {
        let (rest, certificate) =
            X509Certificate::from_der(der).map_err(|_| LeafError::Encoding)?;
        if !rest.is_empty() {
            return Err(LeafError::Encoding);
        }
        // A parser that skips what it cannot read would let an extension decide nothing: every one must be readable.
        let unreadable = |e: &&x509_parser::extensions::X509Extension<'_>| {
            matches!(
                e.parsed_extension(),
                ParsedExtension::ParseError { .. } | ParsedExtension::Unparsed
            )
        };
        if certificate.extensions().iter().any(|e| unreadable(&e)) {
            return Err(LeafError::Encoding);
        }
        let names = certificate
            .subject_alternative_name()
            .map_err(|_| LeafError::Encoding)?;
        let names: Vec<&str> = names
            .iter()
            .flat_map(|extension| &extension.value.general_names)
            .filter_map(|name| {
                if let GeneralName::URI(uri) = name {
                    Some(*uri)
                } else {
                    None
                }
            })
            .collect();
        let [name] = names.as_slice() else {
            return Err(LeafError::UriNames(names.len()));
        };
        let id = name.parse()?;
        let constraints = certificate
            .basic_constraints()
            .map_err(|_| LeafError::Encoding)?;
        if constraints.is_some_and(|constraints| constraints.value.ca) {
            return Err(LeafError::Authority);
        }
        let usage = certificate.key_usage().map_err(|_| LeafError::Encoding)?;
        let usage: &KeyUsage = usage.ok_or(LeafError::NoDigitalSignature)?.value;
        if usage.key_cert_sign() || usage.crl_sign() {
            return Err(LeafError::MaySign);
        }
        if !usage.digital_signature() {
            return Err(LeafError::NoDigitalSignature);
        }
        let extended = certificate
            .extended_key_usage()
            .map_err(|_| LeafError::Encoding)?;
        if extended.is_some_and(|usage| !(usage.value.client_auth && usage.value.server_auth)) {
            return Err(LeafError::ExtendedKeyUsage);
        }
        let validity = certificate.validity();
        Ok(Self {
            id,
            public_key_info: certificate.public_key().raw.to_vec(),
            serial: hexadecimal(certificate.raw_serial()),
            not_before: unix(validity.not_before.timestamp())?,
            not_after: unix(validity.not_after.timestamp())?,
        })
    }

    /// As [`LeafFacts::parse`], for the first of a chain that a peer sent.
    ///
    /// # Errors
    /// Also [`LeafError::ChainLength`] and [`LeafError::ChainSize`], before anything is parsed.
    pub fn parse_chain(
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
    ) -> Result<Self, LeafError> {
        let length = others.len() + 1;
        if length > MOST_CERTIFICATES {
            return Err(LeafError::ChainLength(length));
        }
        let size = leaf.len() + others.iter().map(|other| other.len()).sum::<usize>();
        if size > MOST_BYTES {
            return Err(LeafError::ChainSize(size));
        }
        Self::parse(leaf)
    }
}

fn unix(seconds: i64) -> Result<UnixTime, LeafError> {
    let seconds = u64::try_from(seconds).map_err(|_| LeafError::Encoding)?;
    Ok(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
}

fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Work that a stranger may cause with one handshake is bounded (RUSTSEC-2023-0053).
const MOST_CERTIFICATES: usize = 10;
const MOST_BYTES: usize = 64 << 10;
