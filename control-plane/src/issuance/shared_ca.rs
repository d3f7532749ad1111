//! The embedded CA that several replicas share: one key, in a Secret.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{Api, Client};
use merlon_config::name::TrustDomain;
use merlon_issuer::{Embedded, OpenError};

use crate::cluster::{names, secret};

/// The files of the embedded CA in the state directory, and the entries of the Secret.
const FILES: [&str; 2] = ["ca.key", "ca.pem"];

/// Why the shared CA is not available.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CaError {
    #[error("the Secret `{secret}` of the embedded CA: {0}", secret = names::CA)]
    Cluster(#[from] Box<kube::Error>),
    #[error("the Secret `{secret}` of the embedded CA lacks `{0}`", secret = names::CA)]
    Lacks(&'static str),
    #[error("the embedded CA's files: {0}")]
    Files(#[from] io::Error),
    #[error("{0}")]
    Open(#[from] OpenError),
}

/// The Secret that the replicas share.
#[derive(Clone)]
pub(crate) struct SharedCa {
    pub(crate) client: Client,
    pub(crate) namespace: String,
}

impl std::fmt::Debug for SharedCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedCa").finish_non_exhaustive()
    }
}

impl SharedCa {
    /// Writes the files of the shared CA into the state directory. The first replica creates the CA.
    pub(crate) async fn fetch(
        &self,
        state_dir: &Path,
        trust_domain: &TrustDomain,
    ) -> Result<(), CaError> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let secret = secret::shared(&api, names::CA, async || {
            drop(Embedded::open(state_dir, trust_domain)?);
            let mut data = BTreeMap::new();
            for file in FILES {
                data.insert(file.to_owned(), ByteString(fs::read(state_dir.join(file))?));
            }
            Ok::<_, CaError>(secret::of_type("merlon.io/ca", names::CA, data))
        })
        .await?;
        write(&secret, state_dir)
    }
}

fn write(secret: &Secret, state_dir: &Path) -> Result<(), CaError> {
    let data = secret.data.as_ref();
    for file in FILES {
        let bytes = data.and_then(|data| data.get(file));
        let bytes = &bytes.ok_or(CaError::Lacks(file))?.0;
        let unfinished = state_dir.join(format!("{file}.unfinished"));
        let _ = fs::remove_file(&unfinished);
        let mut out = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&unfinished)?;
        out.write_all(bytes)?;
        out.sync_all()?;
        fs::rename(&unfinished, state_dir.join(file))?;
    }
    Ok(())
}
