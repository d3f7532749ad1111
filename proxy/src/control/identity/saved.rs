//! The identity on disk: one file, written atomically.

use std::{fmt, io, sync::Arc};

use merlon_api::JoinToken;
use merlon_certs::{KeyError, LeafFacts, RootsError, SvidError, TrustRoots, X509Svid, pem};
use merlon_config::{
    name::{SpiffeId, WorkloadId},
    snapshot::TrustBundle,
};
use rustls_pki_types::UnixTime;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use crate::control::state_dir::StateDir;

/// The file name in the state directory.
const FILE: &str = "identity.json";

/// Key, certificate and roots, in one file so that they always match.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SavedIdentity {
    key: String,
    chain: String,
    bundle: TrustBundle,
    /// Hash of the secret of the join token that was used, since a second use would be reported as an attack.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    used_token: Option<[u8; 32]>,
}

/// Why a saved identity is not used. A new one is requested instead.
#[derive(Debug, thiserror::Error)]
pub(super) enum SavedIdentityError {
    #[error(transparent)]
    Read(#[from] io::Error),
    #[error("it is not valid JSON of an identity")]
    Json(#[from] serde_json::Error),
    #[error(transparent)]
    Roots(#[from] RootsError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Svid(#[from] SvidError),
    #[error("it is for `{found}`, but this proxy runs as `{own}`")]
    Other {
        own: Box<WorkloadId>,
        found: Box<SpiffeId>,
    },
    #[error("it is for `{0}`, but the join token is for another mesh")]
    OtherMesh(Box<SpiffeId>),
}

impl SavedIdentity {
    pub(super) fn new(
        svid: &X509Svid,
        bundle: &TrustBundle,
        used_token: Option<[u8; 32]>,
    ) -> Result<Self, SavedIdentityError> {
        Ok(Self {
            key: svid.key.to_pkcs8_pem()?.to_string(),
            chain: svid.chain_pem(),
            bundle: bundle.clone(),
            used_token,
        })
    }

    pub(super) fn read(state_dir: &StateDir) -> Result<Option<Self>, SavedIdentityError> {
        let Some(bytes) = state_dir.read(FILE)? else {
            return Ok(None);
        };
        Ok(Some(serde_json::from_slice(&Zeroizing::new(bytes))?))
    }

    pub(super) fn write(&self, state_dir: &StateDir) -> io::Result<()> {
        let bytes = Zeroizing::new(serde_json::to_vec(self)?);
        state_dir.write(FILE, &bytes)
    }

    pub(super) fn used_token(&self) -> Option<[u8; 32]> {
        self.used_token
    }

    /// The time closest to `now` at which the certificate is valid. `None` if it cannot be read.
    pub(super) fn closest_valid_time(&self, now: UnixTime) -> Option<UnixTime> {
        let chain = pem::certificates(self.chain.as_bytes()).ok()?;
        let leaf = LeafFacts::parse(chain.first()?).ok()?;
        let last = leaf.not_after.as_secs().saturating_sub(1);
        let at = now.as_secs().min(last).max(leaf.not_before.as_secs());
        let at = std::time::Duration::from_secs(at);
        Some(UnixTime::since_unix_epoch(at))
    }

    /// Restores the identity, with the same checks as for a new one, at the time `now`.
    pub(super) fn restore(
        &self,
        own: &WorkloadId,
        token: Option<&JoinToken>,
        now: UnixTime,
    ) -> Result<(Arc<X509Svid>, TrustBundle), SavedIdentityError> {
        let roots = TrustRoots::from_bundle(&self.bundle)?;
        let svid = X509Svid::parse_pem(self.chain.as_bytes(), self.key.as_bytes(), &roots, now)?;
        if svid.id.workload() != own {
            return Err(SavedIdentityError::Other {
                own: Box::new(own.clone()),
                found: Box::new(svid.id),
            });
        }
        if token.is_some_and(|token| token.trust_domain() != svid.id.trust_domain()) {
            return Err(SavedIdentityError::OtherMesh(Box::new(svid.id)));
        }
        Ok((Arc::new(svid), self.bundle.clone()))
    }
}

impl Drop for SavedIdentity {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl fmt::Debug for SavedIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SavedIdentity")
            .field("key", &"[redacted]")
            .finish_non_exhaustive()
    }
}
