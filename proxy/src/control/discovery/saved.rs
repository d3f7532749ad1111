//! The last good state on disk: one file, which is rejected unless it is complete.

use std::{collections::BTreeSet, io, sync::Arc};

use merlon_config::{
    clock,
    name::{SpiffeId, WorkloadId},
    snapshot::{Manifest, ResourceKey, Version},
};
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, task};

use super::subscriber::Complete;
use crate::{
    control::{
        assemble::{HeldResource, Resources},
        state_dir::StateDir,
    },
    state::destinations::LookupKey,
    telemetry::metrics::{FetchResult, Metrics},
};

/// The file name in the state directory.
pub(super) const FILE: &str = "snapshot.json";

/// The content of the file, after a line with the SHA-256 of the rest.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SavedSnapshot {
    pub(super) identity: SpiffeId,
    /// When the state was last confirmed, in seconds since 1970.
    pub(super) confirmed: i64,
    /// The manifest; `version` is its hash.
    manifest: Manifest,
    version: Version,
    resources: Vec<SavedResource>,
    /// The lookups that were subscribed to.
    pub(super) asked_for: BTreeSet<LookupKey>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedResource {
    key: ResourceKey,
    json: String,
}

/// Why a saved state is not used. The proxy then starts without a snapshot.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SavedSnapshotError {
    #[error(transparent)]
    Read(#[from] io::Error),
    #[error("the digest in its first line does not match: the file is truncated or changed")]
    Digest,
    #[error("it is not valid JSON of a state")]
    Json(#[from] serde_json::Error),
    #[error("{0} is missing, or its version is not that of the manifest")]
    Resource(ResourceKey),
    #[error("it is for `{found}`, but this proxy runs as `{own}`")]
    Other {
        own: Box<WorkloadId>,
        found: Box<SpiffeId>,
    },
}

impl SavedSnapshot {
    pub(super) fn new(
        identity: &SpiffeId,
        state: &Complete,
        asked_for: BTreeSet<LookupKey>,
    ) -> Self {
        let resources = state.resources.iter().map(|(key, held)| SavedResource {
            key: key.clone(),
            json: String::from_utf8_lossy(&held.json).into_owned(),
        });
        Self {
            identity: identity.clone(),
            confirmed: clock::now().as_second(),
            manifest: state.manifest.clone(),
            version: state.version.clone(),
            resources: resources.collect(),
            asked_for,
        }
    }

    pub(super) fn write(&self, state_dir: &StateDir) -> io::Result<()> {
        let json = serde_json::to_vec(self)?;
        let mut bytes = Version::of(&json).to_string().into_bytes();
        bytes.push(b'\n');
        bytes.extend_from_slice(&json);
        state_dir.write(FILE, &bytes)
    }

    /// Reads the state, if the file is complete and belongs to this proxy.
    pub(super) fn read(
        state_dir: &StateDir,
        own: &WorkloadId,
    ) -> Result<Option<(Self, Complete)>, SavedSnapshotError> {
        let Some(bytes) = state_dir.read(FILE)? else {
            return Ok(None);
        };
        let end = bytes
            .iter()
            .position(|byte| *byte == b'\n')
            .ok_or(SavedSnapshotError::Digest)?;
        let (digest, rest) = bytes.split_at(end);
        let json = rest.get(1..).unwrap_or_default();
        if Version::of(json).as_str().as_bytes() != digest {
            return Err(SavedSnapshotError::Digest);
        }
        let mut saved: Self = serde_json::from_slice(json)?;
        if saved.identity.workload() != own {
            return Err(SavedSnapshotError::Other {
                own: Box::new(own.clone()),
                found: Box::new(saved.identity.clone()),
            });
        }
        let mut resources = Resources::new();
        for resource in std::mem::take(&mut saved.resources) {
            let version = Version::of(resource.json.as_bytes());
            resources.insert(
                resource.key,
                HeldResource {
                    version,
                    json: resource.json.into(),
                },
            );
        }
        for entry in &saved.manifest.entries {
            if resources
                .get(&entry.key)
                .is_none_or(|held| held.version != entry.version)
            {
                return Err(SavedSnapshotError::Resource(entry.key.clone()));
            }
        }
        resources.retain(|key, _| saved.manifest.entries.iter().any(|entry| entry.key == *key));
        let state = Complete::restored(saved.manifest.clone(), saved.version.clone(), resources);
        Ok(Some((saved, state)))
    }
}

/// Saves states in a separate task; if several are waiting, only the newest. A slow disk delays neither the
/// acknowledgement of a state nor the next one.
#[derive(Debug)]
pub(super) struct Writer(watch::Sender<Option<Arc<PendingSave>>>);

#[derive(Debug)]
struct PendingSave {
    identity: SpiffeId,
    state: Complete,
    asked_for: BTreeSet<LookupKey>,
}

impl Writer {
    pub(super) fn start(state_dir: Arc<StateDir>, metrics: &Arc<Metrics>) -> Self {
        let (newest, mut next) = watch::channel(None::<Arc<PendingSave>>);
        let metrics = Arc::clone(metrics);
        tokio::spawn(async move {
            while next.changed().await.is_ok() {
                let Some(one) = next.borrow_and_update().clone() else {
                    continue;
                };
                let state_dir = Arc::clone(&state_dir);
                let written = task::spawn_blocking(move || one.write(&state_dir)).await;
                let written = written.map_err(io::Error::other).flatten();
                metrics.persists.inc(match &written {
                    Ok(()) => FetchResult::Ok,
                    Err(_) => FetchResult::Failed,
                });
                if let Err(error) = written {
                    tracing::error!(%error, "snapshot.not_saved");
                }
            }
        });
        Self(newest)
    }

    pub(super) fn save(
        &self,
        identity: &SpiffeId,
        state: &Complete,
        asked_for: BTreeSet<LookupKey>,
    ) {
        self.0.send_replace(Some(Arc::new(PendingSave {
            identity: identity.clone(),
            state: state.clone(),
            asked_for,
        })));
    }
}

impl PendingSave {
    fn write(&self, state_dir: &StateDir) -> io::Result<()> {
        SavedSnapshot::new(&self.identity, &self.state, self.asked_for.clone()).write(state_dir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::fixtures;

    fn written() -> (tempfile::TempDir, Arc<StateDir>) {
        let folder = tempfile::tempdir().unwrap();
        let dir = fixtures::state_dir(folder.path());
        let resources = fixtures::resources(&["shop/payments"]);
        let (version, manifest, _) = fixtures::manifest(&resources);
        let state = Complete::restored(manifest, version, resources);
        let lookups = ["shop/payments".parse().unwrap()].into();
        SavedSnapshot::new(&fixtures::orders(), &state, lookups)
            .write(&dir)
            .unwrap();
        (folder, dir)
    }

    fn read(dir: &StateDir) -> Result<Option<(SavedSnapshot, Complete)>, SavedSnapshotError> {
        SavedSnapshot::read(dir, &"shop/orders".parse().unwrap())
    }

    #[test]
    fn a_state_survives_a_round_trip() {
        let (_folder, dir) = written();
        let (saved, state) = read(&dir).unwrap().unwrap();
        assert_eq!(state.resources, fixtures::resources(&["shop/payments"]));
        assert_eq!(saved.asked_for, ["shop/payments".parse().unwrap()].into());
    }

    #[test]
    fn without_a_file_there_is_no_state() {
        let folder = tempfile::tempdir().unwrap();
        assert!(read(&fixtures::state_dir(folder.path())).unwrap().is_none());
    }

    #[test]
    fn a_truncated_file_is_rejected() {
        let (_folder, dir) = written();
        let whole = dir.read(FILE).unwrap().unwrap();
        for length in [0, 1, 63, 64, 65, whole.len() / 2, whole.len() - 1] {
            dir.write(FILE, &whole[..length]).unwrap();
            assert!(
                matches!(read(&dir), Err(SavedSnapshotError::Digest)),
                "{length} bytes"
            );
        }
    }

    #[test]
    fn a_file_with_a_flipped_bit_is_rejected() {
        let (_folder, dir) = written();
        let whole = dir.read(FILE).unwrap().unwrap();
        for at in (0..whole.len()).step_by(7) {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            dir.write(FILE, &changed).unwrap();
            assert!(read(&dir).is_err(), "byte {at}");
        }
    }

    #[test]
    fn the_state_of_another_proxy_is_rejected() {
        let (_folder, dir) = written();
        let read = SavedSnapshot::read(&dir, &"shop/web".parse().unwrap());
        assert!(matches!(read, Err(SavedSnapshotError::Other { .. })));
    }
}
