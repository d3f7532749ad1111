//! SPIFFE identities and the TLS configurations built from them.
#![doc = include_str!("../README.md")]

mod clock;
mod key;
mod leaf;
pub mod pem;
mod provider;
mod reason;
mod renewal;
mod roots;
mod svid;
mod tls;
mod verifier;

pub use clock::{time_provider, unix_now};
pub use key::{KeyError, PrivateKey};
pub use leaf::{LeafError, LeafFacts, MAX_BYTES, MAX_CERTIFICATES};
pub use provider::provider;
pub use reason::{Side, TlsFault, fault_of, fault_of_io, side_of};
pub use renewal::{LEAF_BACKDATE, renewal_at};
pub use roots::{RootsError, TrustRoots};
pub use svid::{SvidError, X509Svid};
pub use tls::{Bootstrap, H2, MERLON_H2, MERLON_TCP, MeshTls, server_name};
pub use verifier::{SpiffeVerifier, Usage};

/// DER certificates; the type of rustls.
pub use rustls::pki_types::CertificateDer;
