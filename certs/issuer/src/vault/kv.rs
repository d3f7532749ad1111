//! Secrets of the KV engine, version 2.

use std::collections::BTreeMap;

use merlon_config::resource::VaultIssuer;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    endpoint::{Call, is_path},
    session::Session,
};
use crate::error::IssueError;

/// The newest version of a secret.
#[derive(Clone, PartialEq, Eq)]
pub struct KvSecret {
    /// Version number, from 1.
    pub version: u64,
    /// Strings unchanged, other values as JSON.
    pub data: BTreeMap<String, String>,
}

/// An answer of the engine.
#[derive(Deserialize)]
pub(crate) struct Read {
    data: Option<Map<String, Value>>,
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    version: u64,
}

pub(super) async fn read(
    session: &Session,
    settings: &VaultIssuer,
    path: &str,
) -> Result<KvSecret, IssueError> {
    let full = format!("{}/{path}", settings.kv_prefix);
    if !is_path(&full) || !is_path(&settings.kv_mount) {
        return Err(IssueError::Setup(format!("`{full}` is not a path")));
    }
    let what = format!("read the secret `{}/{full}`", settings.kv_mount);
    let call = Call::get(format!("{}/data/{full}", settings.kv_mount));
    let read: Read = session.call(&what, &call).await?;
    read.into_secret(&what)
}

impl Read {
    /// # Errors
    /// The newest version was deleted.
    pub(crate) fn into_secret(self, what: &str) -> Result<KvSecret, IssueError> {
        let data = self.data.ok_or_else(|| {
            IssueError::Setup(format!("cannot {what}: its newest version was deleted"))
        })?;
        let texts = data.into_iter().map(|(key, value)| match value {
            Value::String(text) => (key, text),
            other => (key, other.to_string()),
        });
        Ok(KvSecret {
            version: self.metadata.version,
            data: texts.collect(),
        })
    }
}

impl std::fmt::Debug for KvSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the data.
        f.debug_struct("KvSecret")
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}
