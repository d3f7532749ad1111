//! SPIFFE identities and the TLS configurations made of them.
#![doc = include_str!("../README.md")]

mod key;
mod leaf;
mod reason;
mod renewal;
mod roots;
mod svid;
mod tls;
mod verifier;

pub use key::{KeyError, PrivateKey};
pub use leaf::{LeafError, LeafFacts};
pub use reason::{TlsFault, fault_of};
pub use renewal::renewal_at;
pub use roots::{RootsError, TrustRoots};
pub use svid::{SvidError, X509Svid};
pub use tls::{Bootstrap, H2, MERLON_H2, MERLON_TCP, MeshTls};
pub use verifier::{SpiffeVerifier, Usage};

/// DER certificates, as rustls and everything here speaks of them.
pub use rustls::pki_types::CertificateDer;
