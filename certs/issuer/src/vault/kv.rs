//! Secrets of the KV engine, version 2.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Vault, endpoint::Call, is_path};
use crate::error::IssueError;

/// A secret as it is now.
#[derive(Clone, PartialEq, Eq)]
pub struct KvSecret {
    /// Counts its changes.
    pub version: u64,
    /// Texts as they are, everything else as JSON.
    pub data: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Read {
    data: Option<Map<String, Value>>,
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    version: u64,
}

impl Vault {
    /// The secret at `path`, below the mount and prefix that `MeshConfig` names.
    ///
    /// # Errors
    /// [`IssueError`]; also when nothing is there, or it was deleted.
    pub async fn secret(&self, path: &str) -> Result<KvSecret, IssueError> {
        let settings = &self.settings;
        let full = format!("{}/{path}", settings.kv_prefix);
        if !is_path(&full) || !is_path(&settings.kv_mount) {
            return Err(IssueError::Setup(format!("`{full}` is no path")));
        }
        let what = format!("read the secret `{}/{full}`", settings.kv_mount);
        let call = Call::get(format!("{}/data/{full}", settings.kv_mount));
        let read: Read = self.session.call(&what, &call).await?;
        let data = read.data.ok_or_else(|| {
            IssueError::Setup(format!("cannot {what}: its newest version was deleted"))
        })?;
        let texts = data.into_iter().map(|(key, value)| match value {
            Value::String(text) => (key, text),
            other => (key, other.to_string()),
        });
        Ok(KvSecret {
            version: read.metadata.version,
            data: texts.collect(),
        })
    }
}

impl std::fmt::Debug for KvSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never what it says.
        f.debug_struct("KvSecret")
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}
