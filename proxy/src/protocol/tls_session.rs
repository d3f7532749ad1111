//! The properties of a TLS connection that policies can read.

use merlon_policy::facts::TlsFacts;
use rustls::{ProtocolVersion, ServerConnection};

/// The result of a handshake, read once per connection.
#[derive(Debug)]
pub(crate) struct TlsSession {
    version: &'static str,
    cipher: &'static str,
    dns_names: Vec<String>,
}

impl TlsSession {
    /// Reads a completed handshake; `dns_names` are those of the peer's certificate, if it presented one.
    pub(crate) fn from_connection(tls: &ServerConnection, dns_names: Vec<String>) -> Self {
        Self {
            version: match tls.protocol_version() {
                Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
                // Older versions are disabled, and there is no newer one.
                _ => "TLSv1.3",
            },
            cipher: tls
                .negotiated_cipher_suite()
                .and_then(|suite| suite.suite().as_str())
                .unwrap_or_default(),
            dns_names,
        }
    }

    pub(crate) fn facts(&self) -> TlsFacts<'_> {
        TlsFacts {
            version: self.version,
            cipher: self.cipher,
            dns_names: &self.dns_names,
        }
    }
}
