use std::io;

use rustls::{AlertDescription, CertificateError, Error};

use crate::leaf::LeafError;

/// Why a handshake failed, for logs and metrics: a stable word each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TlsFault {
    /// The peer showed no certificate.
    NoClientCert,
    /// No trusted root vouches for it.
    Untrusted,
    /// It is expired or not valid yet.
    Expired,
    /// It is not an X.509-SVID of a workload, or of another workload than was expected.
    Svid,
    /// Anything else.
    Handshake,
}

impl TlsFault {
    /// All of them, for metrics.
    pub const ALL: [Self; 5] = [
        Self::NoClientCert,
        Self::Untrusted,
        Self::Expired,
        Self::Svid,
        Self::Handshake,
    ];

    /// The stable word.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::NoClientCert => "tls.no_client_cert",
            Self::Untrusted => "tls.untrusted",
            Self::Expired => "tls.expired",
            Self::Svid => "tls.svid",
            Self::Handshake => "tls.handshake",
        }
    }
}

/// The fault that an error of a handshake tells of.
pub fn fault_of(error: &Error) -> TlsFault {
    use CertificateError as C;
    match error {
        Error::NoCertificatesPresented => TlsFault::NoClientCert,
        Error::InvalidCertificate(
            C::Expired | C::ExpiredContext { .. } | C::NotValidYet | C::NotValidYetContext { .. },
        ) => TlsFault::Expired,
        // What is wrong with the leaf itself comes as `LeafError`; what path building says otherwise, of a signature, an
        // intermediate's limits or its purpose, means that nobody vouches.
        Error::InvalidCertificate(C::Other(other)) => match other.0.downcast_ref::<LeafError>() {
            Some(LeafError::UnknownTrustDomain(_) | LeafError::PinnedRootAbsent) | None => {
                TlsFault::Untrusted
            }
            Some(_) => TlsFault::Svid,
        },
        Error::InvalidCertificate(C::BadEncoding) => TlsFault::Svid,
        Error::InvalidCertificate(_) => TlsFault::Untrusted,
        _ => TlsFault::Handshake,
    }
}

/// As [`fault_of`], for what a handshake of `tokio_rustls` returns. What is no error of TLS, as a reset or an early end,
/// is [`TlsFault::Handshake`].
pub fn fault_of_io(error: &io::Error) -> TlsFault {
    error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<Error>())
        .map_or(TlsFault::Handshake, fault_of)
}

/// Who has to mend a failed handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// The other end: what it sent is wrong, or not to be trusted.
    Peer,
    /// We: the other end refuses our certificate, or our clock or randomness fails.
    Us,
}

/// Who has to mend the error of a handshake.
pub fn side_of(error: &Error) -> Side {
    use AlertDescription as A;
    match error {
        Error::AlertReceived(
            A::BadCertificate
            | A::UnsupportedCertificate
            | A::CertificateRevoked
            | A::CertificateExpired
            | A::CertificateUnknown
            | A::CertificateRequired
            | A::UnknownCA
            | A::AccessDenied,
        )
        | Error::FailedToGetCurrentTime
        | Error::FailedToGetRandomBytes
        | Error::General(_) => Side::Us,
        _ => Side::Peer,
    }
}
