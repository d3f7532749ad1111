//! An identity from files.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use merlon_certs::{
    MeshTls, PrivateKey, RootsError, SvidError, TrustRoots, X509Svid, pem, unix_now,
};
use merlon_config::{
    name::{NameError, SpiffeId, TrustDomain},
    snapshot::TrustBundle,
};
use rustls_pki_types::CertificateDer;

use crate::config::IdentityFiles;

/// Why files are not a valid identity.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    #[error("`{}`: {source}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{}` contains no trust domain: {source}", path.display())]
    TrustDomain {
        path: PathBuf,
        #[source]
        source: NameError,
    },
    #[error("`{}` is empty or not text", .0.display())]
    NoText(PathBuf),
    #[error("`{}` is not PEM with at least one certificate", .0.display())]
    Pem(PathBuf),
    #[error("the trust bundle is invalid: {0}")]
    Roots(#[from] RootsError),
    #[error(transparent)]
    Svid(#[from] SvidError),
    #[error("the certificate is for `{found}`, but this proxy runs as `{own}`")]
    Other {
        own: Box<SpiffeId>,
        found: Box<SpiffeId>,
    },
    #[error(transparent)]
    Tls(#[from] rustls::Error),
}

/// Reads and validates an identity.
pub(crate) fn load(
    files: &IdentityFiles,
    own: &SpiffeId,
    trust_domain: &TrustDomain,
) -> Result<MeshTls, IdentityError> {
    let roots = Arc::new(TrustRoots::from_bundle(&bundle(files, trust_domain)?)?);
    let chain = certificates(&files.certificate)?;
    let key = PrivateKey::from_pkcs8_pem(&read(&files.key)?).map_err(SvidError::from)?;
    let svid = X509Svid::parse(chain, key, &roots, unix_now())?;
    if svid.id != *own {
        return Err(IdentityError::Other {
            own: Box::new(own.clone()),
            found: Box::new(svid.id),
        });
    }
    Ok(MeshTls::new(Arc::new(svid), roots)?)
}

/// Reads the roots.
pub(crate) fn bundle(
    files: &IdentityFiles,
    trust_domain: &TrustDomain,
) -> Result<TrustBundle, IdentityError> {
    bundle_of(&files.trust_bundle, trust_domain)
}

/// Reads the roots of a PEM file.
pub(crate) fn bundle_of(
    path: &Path,
    trust_domain: &TrustDomain,
) -> Result<TrustBundle, IdentityError> {
    let roots = certificates(path)?;
    Ok(TrustBundle {
        trust_domain: trust_domain.clone(),
        roots: roots.iter().map(pem::certificate).collect(),
    })
}

/// Reads a trust domain.
pub(crate) fn trust_domain(path: &Path) -> Result<TrustDomain, IdentityError> {
    text(path)?
        .parse()
        .map_err(|source| IdentityError::TrustDomain {
            path: path.to_owned(),
            source,
        })
}

/// Reads a small file, without surrounding white space.
pub(crate) fn text(path: &Path) -> Result<String, IdentityError> {
    let bytes = read(path)?;
    let text = std::str::from_utf8(&bytes)
        .map(str::trim)
        .unwrap_or_default();
    if text.is_empty() {
        return Err(IdentityError::NoText(path.to_owned()));
    }
    Ok(text.to_owned())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let bytes = read(path)?;
    pem::certificates(&bytes).map_err(|_| IdentityError::Pem(path.to_owned()))
}

fn read(path: &Path) -> Result<zeroize::Zeroizing<Vec<u8>>, IdentityError> {
    let bytes = fs::read(path).map_err(|source| IdentityError::Read {
        path: path.to_owned(),
        source,
    })?;
    Ok(bytes.into())
}
