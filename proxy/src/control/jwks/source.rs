//! Where an issuer's keys come from.

use merlon_config::resource::TokenIssuer;
use url::Url;

/// The URL of an issuer's keys, and the CA certificates to verify its server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct IssuerSource {
    pub(super) issuer: String,
    pub(super) jwks_uri: Option<Url>,
    pub(super) ca_certificates: Option<String>,
}

impl From<&TokenIssuer> for IssuerSource {
    fn from(issuer: &TokenIssuer) -> Self {
        Self {
            issuer: issuer.issuer.clone(),
            jwks_uri: issuer.jwks_uri.clone(),
            ca_certificates: issuer.ca_certificates.clone(),
        }
    }
}
