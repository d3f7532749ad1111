use std::time::Duration;

use merlon_config::name::{NameError, SpiffeId};
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::{
    extensions::{GeneralName, KeyUsage, ParsedExtension},
    prelude::{FromDer, X509Certificate},
};

/// Why a certificate is not an X.509-SVID of a workload (X509-SVID §2–5), or not the expected one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages document the variants")]
#[non_exhaustive]
pub enum LeafError {
    #[error("the certificate is not well-formed: {0}")]
    Encoding(&'static str),
    #[error("the certificate has {0} URI names instead of one")]
    UriNames(usize),
    #[error("the certificate's name is invalid: {0}")]
    Name(#[from] NameError),
    #[error("the certificate is a CA certificate")]
    Authority,
    #[error("the certificate may sign certificates (key usage `keyCertSign`)")]
    SignsCertificates,
    #[error("the certificate may sign revocation lists (key usage `cRLSign`)")]
    SignsRevocations,
    #[error("the certificate has no key usage `digitalSignature`")]
    NoDigitalSignature,
    #[error("the certificate's extended key usage lacks {0} authentication")]
    ExtendedKeyUsage(&'static str),
    #[error("the certificate chain has {0} certificates, more than {MAX_CERTIFICATES}")]
    ChainLength(usize),
    #[error("the certificate chain has {0} bytes, more than {MAX_BYTES}")]
    ChainSize(usize),
    #[error("the peer is `{found}`, expected `{expected}`")]
    OtherIdentity {
        expected: Box<SpiffeId>,
        found: Box<SpiffeId>,
    },
    #[error("trust domain `{0}` has no known root")]
    UnknownTrustDomain(String),
    #[error("the certificate of the pinned root is not in the chain")]
    PinnedRootAbsent,
}

/// The contents of a leaf that passed every rule that needs no root.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeafFacts {
    /// The identity.
    pub id: SpiffeId,
    /// SubjectPublicKeyInfo, DER.
    pub public_key_info: Vec<u8>,
    /// Lower-case hexadecimal.
    pub serial: String,
    /// Valid from.
    pub not_before: UnixTime,
    /// Valid until.
    pub not_after: UnixTime,
    /// Whether it has names besides the identity, such as hosts. Certificates of peers may have them; our issuers sign none.
    pub other_names: bool,
    /// Its DNS names.
    pub dns_names: Vec<String>,
}

impl LeafFacts {
    /// Parses a leaf and checks its form: exactly one URI name, which is a SPIFFE ID of the mesh; no CA; no right to sign
    /// certificates or revocation lists; `digitalSignature`; and both authentications if it has an extended key usage.
    ///
    /// It does not check whether a trusted root signed the leaf.
    ///
    /// # Errors
    /// The first violated rule.
    pub fn parse(der: &[u8]) -> Result<Self, LeafError> {
        if der.len() > MAX_BYTES {
            return Err(LeafError::ChainSize(der.len()));
        }
        let (rest, certificate) =
            X509Certificate::from_der(der).map_err(|_| LeafError::Encoding("it is not X.509"))?;
        if !rest.is_empty() {
            return Err(LeafError::Encoding("it has trailing bytes"));
        }
        // The accessors treat an unreadable extension as absent, so its rule would not be checked.
        if certificate.extensions().iter().any(|extension| {
            matches!(
                extension.parsed_extension(),
                ParsedExtension::ParseError { .. } | ParsedExtension::Unparsed
            )
        }) {
            return Err(LeafError::Encoding("an extension cannot be read"));
        }
        let (id, other_names, dns_names) = names(&certificate)?;
        check_usage(&certificate)?;
        let validity = certificate.validity();
        Ok(Self {
            id,
            public_key_info: certificate.public_key().raw.to_vec(),
            serial: hexadecimal(certificate.raw_serial()),
            not_before: unix(validity.not_before.timestamp())?,
            not_after: unix(validity.not_after.timestamp())?,
            other_names,
            dns_names,
        })
    }

    /// Like [`LeafFacts::parse`], for the leaf of a chain from a peer.
    ///
    /// # Errors
    /// Also [`LeafError::ChainLength`] and [`LeafError::ChainSize`], before anything is parsed.
    pub fn parse_chain(
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
    ) -> Result<Self, LeafError> {
        let length = others.len() + 1;
        if length > MAX_CERTIFICATES {
            return Err(LeafError::ChainLength(length));
        }
        let size = leaf.len() + others.iter().map(|other| other.len()).sum::<usize>();
        if size > MAX_BYTES {
            return Err(LeafError::ChainSize(size));
        }
        Self::parse(leaf)
    }
}

/// The identity, whether there are other names, and the DNS names.
fn names(certificate: &X509Certificate<'_>) -> Result<(SpiffeId, bool, Vec<String>), LeafError> {
    let names = certificate
        .subject_alternative_name()
        .map_err(|_| LeafError::Encoding("it has two lists of names"))?
        .map(|extension| extension.value.general_names.as_slice())
        .unwrap_or_default();
    if names
        .iter()
        .any(|name| matches!(name, GeneralName::Invalid(..)))
    {
        return Err(LeafError::Encoding("one of its names cannot be read"));
    }
    let uris: Vec<&str> = names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect();
    let hosts = names.iter().filter_map(|name| match name {
        GeneralName::DNSName(host) => Some((*host).to_owned()),
        _ => None,
    });
    match uris.as_slice() {
        [uri] => Ok((uri.parse()?, names.len() > 1, hosts.collect())),
        uris => Err(LeafError::UriNames(uris.len())),
    }
}

fn check_usage(certificate: &X509Certificate<'_>) -> Result<(), LeafError> {
    let twice = |_| LeafError::Encoding("an extension occurs twice");
    let constraints = certificate.basic_constraints().map_err(twice)?;
    if constraints.is_some_and(|constraints| constraints.value.ca) {
        return Err(LeafError::Authority);
    }
    let usage = certificate.key_usage().map_err(twice)?;
    let usage: &KeyUsage = usage.ok_or(LeafError::NoDigitalSignature)?.value;
    if usage.key_cert_sign() {
        return Err(LeafError::SignsCertificates);
    }
    if usage.crl_sign() {
        return Err(LeafError::SignsRevocations);
    }
    if !usage.digital_signature() {
        return Err(LeafError::NoDigitalSignature);
    }
    let Some(extended) = certificate.extended_key_usage().map_err(twice)? else {
        return Ok(());
    };
    if !extended.value.client_auth {
        return Err(LeafError::ExtendedKeyUsage("client"));
    }
    if !extended.value.server_auth {
        return Err(LeafError::ExtendedKeyUsage("server"));
    }
    Ok(())
}

pub(crate) fn unix(seconds: i64) -> Result<UnixTime, LeafError> {
    let seconds = u64::try_from(seconds)
        .map_err(|_| LeafError::Encoding("its validity begins or ends before 1970"))?;
    Ok(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
}

fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    // A leading zero byte only marks the number as positive.
    let bytes = match bytes {
        [0, rest @ ..] if !rest.is_empty() => rest,
        bytes => bytes,
    };
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Maximum number of certificates in a chain, including the leaf. It bounds the work that an unauthenticated peer can
/// cause with one handshake (RUSTSEC-2023-0053).
pub const MAX_CERTIFICATES: usize = 10;

/// Maximum number of bytes in a chain.
pub const MAX_BYTES: usize = 64 << 10;
