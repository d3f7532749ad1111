//! Fetches an issuer's keys, by its URL.

use std::{sync::Arc, time::Duration};

use merlon_policy::authn::jwks::{JwksProblem, KeySet};
use serde::Deserialize;
use url::Url;

use super::{
    http::{Fetch, FetchError},
    source::IssuerSource,
};
use crate::limits::Limits;

/// Why an issuer's keys could not be fetched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeysError {
    #[error("`{0}` is not a valid URL")]
    Issuer(String),
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("the discovery document is not a JSON object with `issuer` and `jwks_uri`")]
    Discovery(#[source] serde_json::Error),
    #[error("the discovery document names the issuer `{found}`, not `{wanted}`")]
    OtherIssuer { wanted: String, found: String },
    #[error(transparent)]
    Keys(#[from] JwksProblem),
}

/// The fetched keys of an issuer.
#[derive(Debug)]
pub(super) struct Keys {
    pub(super) set: Arc<KeySet>,
    /// Hash of the document, to detect changes.
    pub(super) digest: merlon_config::snapshot::Version,
    pub(super) max_age: Option<Duration>,
}

/// OpenID Connect Discovery 1.0 §3; only the fields that are needed for keys.
#[derive(Debug, Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: Url,
}

pub(super) async fn fetch(source: &IssuerSource, limits: &Limits) -> Result<Keys, KeysError> {
    let issuer: Url = source
        .issuer
        .parse()
        .map_err(|_| KeysError::Issuer(source.issuer.clone()))?;
    let fetch = Fetch::new(&issuer, source.ca_certificates.as_deref(), limits)?;
    let jwks_uri = match &source.jwks_uri {
        Some(uri) => uri.clone(),
        None => discover(&fetch, &source.issuer).await?,
    };
    let fetched = fetch.get(&jwks_uri).await?;
    let set = Arc::new(KeySet::parse(&fetched.body)?);
    for note in set.skipped() {
        tracing::warn!(issuer = source.issuer, reason = %note, "jwks.key_skipped");
    }
    let digest = merlon_config::snapshot::Version::of(&fetched.body);
    Ok(Keys {
        set,
        digest,
        max_age: fetched.max_age,
    })
}

async fn discover(fetch: &Fetch, issuer: &str) -> Result<Url, KeysError> {
    let url = format!(
        "{}/.well-known/openid-configuration",
        issuer.trim_end_matches('/')
    );
    let url: Url = url
        .parse()
        .map_err(|_| KeysError::Issuer(issuer.to_owned()))?;
    let fetched = fetch.get(&url).await?;
    jwks_uri(&fetched.body, issuer)
}

/// The URL of the keys in the discovery document of `issuer`.
pub(crate) fn jwks_uri(document: &[u8], issuer: &str) -> Result<Url, KeysError> {
    let found: Discovery = serde_json::from_slice(document).map_err(KeysError::Discovery)?;
    // Discovery §4.3: an exact match, or one issuer could impersonate another.
    if found.issuer != issuer {
        return Err(KeysError::OtherIssuer {
            wanted: issuer.to_owned(),
            found: found.issuer.chars().take(256).collect(),
        });
    }
    Ok(found.jwks_uri)
}
