use rustls::{CertificateError, Error};

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
        Error::InvalidCertificate(C::UnknownIssuer | C::BadSignature) => TlsFault::Untrusted,
        Error::InvalidCertificate(C::Other(other)) => match other.0.downcast_ref::<LeafError>() {
            Some(LeafError::UnknownTrustDomain(_) | LeafError::PinnedRootAbsent) => {
                TlsFault::Untrusted
            }
            Some(_) => TlsFault::Svid,
            None => TlsFault::Untrusted,
        },
        Error::InvalidCertificate(_) => TlsFault::Svid,
        _ => TlsFault::Handshake,
    }
}
