use std::io;

use rustls::{AlertDescription, CertificateError, Error};

use crate::leaf::LeafError;

/// Why a handshake failed, with a stable name for logs and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TlsFault {
    /// The peer sent no certificate.
    NoClientCert,
    /// No trusted root signed it.
    Untrusted,
    /// It is expired or not valid yet.
    Expired,
    /// It is not an X.509-SVID of a workload, or of another workload than was expected.
    Svid,
    /// Anything else.
    Handshake,
}

impl TlsFault {
    /// All faults, for metrics.
    pub const ALL: [Self; 5] = [
        Self::NoClientCert,
        Self::Untrusted,
        Self::Expired,
        Self::Svid,
        Self::Handshake,
    ];

    /// The stable name.
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

/// The fault of a handshake error.
pub fn fault_of(error: &Error) -> TlsFault {
    use CertificateError as C;
    match error {
        Error::NoCertificatesPresented => TlsFault::NoClientCert,
        Error::InvalidCertificate(
            C::Expired | C::ExpiredContext { .. } | C::NotValidYet | C::NotValidYetContext { .. },
        ) => TlsFault::Expired,
        // Errors of the leaf itself are `LeafError`s. Other errors of path building (a signature, the constraints or the
        // purpose of an intermediate) mean that the leaf is not trusted.
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

/// Like [`fault_of`], for errors of `tokio_rustls`. An error outside TLS, such as a reset or an early close, is
/// [`TlsFault::Handshake`].
pub fn fault_of_io(error: &io::Error) -> TlsFault {
    error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<Error>())
        .map_or(TlsFault::Handshake, fault_of)
}

/// The side that has to fix a failed handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// The peer: what it sent is invalid or not trusted.
    Peer,
    /// This side: the peer refuses our certificate, or our clock or random numbers fail.
    Us,
}

/// The side that has to fix a handshake error.
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
