use std::time::Duration;

use merlon_config::name::{NameError, SpiffeId};
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::{
    extensions::{GeneralName, KeyUsage, ParsedExtension},
    prelude::{FromDer, X509Certificate},
};

/// Why a certificate is not an X.509-SVID of a workload (X509-SVID §2–5), or not the one that was wanted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each variant says itself")]
#[non_exhaustive]
pub enum LeafError {
    #[error("the certificate is not well-formed: {0}")]
    Encoding(&'static str),
    #[error("the certificate has {0} URI names instead of one")]
    UriNames(usize),
    #[error("the certificate's name is wrong: {0}")]
    Name(#[from] NameError),
    #[error("the certificate belongs to a certification authority")]
    Authority,
    #[error("the certificate may sign certificates (key usage `keyCertSign`)")]
    SignsCertificates,
    #[error("the certificate may sign revocation lists (key usage `cRLSign`)")]
    SignsRevocations,
    #[error("the certificate has no key usage `digitalSignature`")]
    NoDigitalSignature,
    #[error("the certificate's extended key usage lacks {0} authentication")]
    ExtendedKeyUsage(&'static str),
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
#[non_exhaustive]
pub struct LeafFacts {
    /// Whose it is.
    pub id: SpiffeId,
    /// SubjectPublicKeyInfo, DER.
    pub public_key_info: Vec<u8>,
    /// Lower-case hexadecimal.
    pub serial: String,
    /// Valid from.
    pub not_before: UnixTime,
    /// Valid until.
    pub not_after: UnixTime,
    /// Whether it names more than the identity: a host, an address. A peer's may; those that our issuers sign do not.
    pub other_names: bool,
    /// The hosts that it names, if any.
    pub dns_names: Vec<String>,
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
        if der.len() > MOST_BYTES {
            return Err(LeafError::ChainSize(der.len()));
        }
        let (rest, certificate) =
            X509Certificate::from_der(der).map_err(|_| LeafError::Encoding("it is not X.509"))?;
        if !rest.is_empty() {
            return Err(LeafError::Encoding("bytes follow it"));
        }
        // The accessors take an extension that cannot be read for an absent one, which would let it decide nothing.
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

/// The one identity, whether there is more, and the hosts among it.
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
    let twice = |_| LeafError::Encoding("an extension stands in it twice");
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
    // A leading zero only says that the number is positive.
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

/// At most so many certificates in a chain, the leaf among them: work that a stranger may cause with one handshake is
/// bounded (RUSTSEC-2023-0053).
pub const MOST_CERTIFICATES: usize = 10;

/// At most so many bytes in a chain.
pub const MOST_BYTES: usize = 64 << 10;
