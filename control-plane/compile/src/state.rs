//! The state of one proxy: resources with their hashes, and the manifest that names them.

use std::{collections::BTreeMap, sync::Arc};

use merlon_config::{
    name::SpiffeId,
    snapshot::{
        CertificateState, Manifest, ManifestEntry, ResourceKey, ResourceKind, SecretState,
        TrustBundle, Version,
    },
};
use serde::Serialize;

/// One resource of the push: what it is called, its bytes, and their hash.
#[derive(Clone, PartialEq, Eq)]
pub struct StateResource {
    key: ResourceKey,
    version: Version,
    json: Arc<[u8]>,
}

impl StateResource {
    /// Writes `content` as JSON. Equal contents have equal bytes: structs keep their order and maps are sorted.
    pub(crate) fn new<T: Serialize>(kind: ResourceKind, name: String, content: &T) -> Self {
        // INVARIANT: every snapshot type is made of structs, lists and maps with text keys, which JSON can hold;
        // should one ever not, the empty bytes are refused by every proxy, which keeps the state it has.
        let json = serde_json::to_vec(content).unwrap_or_default();
        Self {
            key: ResourceKey { kind, name },
            version: Version::of(&json),
            json: json.into(),
        }
    }

    /// The roots of one trust domain, which the compiler does not know: whoever signs does.
    pub fn trust_bundle(bundle: &TrustBundle) -> Self {
        let name = bundle.trust_domain.to_string();
        Self::new(ResourceKind::TrustBundle, name, bundle)
    }

    /// A gateway's certificate, which the compiler does not know either.
    pub fn certificate(certificate: &CertificateState) -> Self {
        let name = certificate.name.to_string();
        Self::new(ResourceKind::Certificate, name, certificate)
    }

    /// A secret, which was read elsewhere.
    pub fn secret(secret: &SecretState) -> Self {
        Self::new(ResourceKind::Secret, secret.name.to_string(), secret)
    }

    /// What it is called.
    pub fn key(&self) -> &ResourceKey {
        &self.key
    }

    /// SHA-256 of [`StateResource::json`].
    pub fn version(&self) -> &Version {
        &self.version
    }

    /// JSON of the kind's type in `merlon_config::snapshot`.
    pub fn json(&self) -> &[u8] {
        &self.json
    }
}

impl std::fmt::Debug for StateResource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{:?}", self.key, self.version)
    }
}

/// Everything one proxy needs, by key; the manifest is not in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProxyState {
    resources: BTreeMap<ResourceKey, Arc<StateResource>>,
}

impl ProxyState {
    /// Adds a resource, or puts it in place of one of the same key.
    pub fn insert(&mut self, resource: Arc<StateResource>) {
        self.resources.insert(resource.key.clone(), resource);
    }

    /// The resource of this key.
    pub fn get(&self, key: &ResourceKey) -> Option<&Arc<StateResource>> {
        self.resources.get(key)
    }

    /// All of them, in order of key.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<StateResource>> {
        self.resources.values()
    }

    /// Leaves out what `keep` does not keep.
    pub fn retain(&mut self, mut keep: impl FnMut(&ResourceKey) -> bool) {
        self.resources.retain(|key, _| keep(key));
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.resources.len()
    }

    /// Whether it is empty, which no compiled state is.
    pub fn is_empty(&self) -> bool {
        self.resources.is_empty()
    }

    /// What names all of them; its version is the version of the whole state.
    pub fn manifest(&self, identity: &SpiffeId) -> StateResource {
        let entries = self.iter().map(|resource| ManifestEntry {
            key: resource.key.clone(),
            version: resource.version.clone(),
        });
        let manifest = Manifest {
            entries: entries.collect(),
        };
        StateResource::new(ResourceKind::Manifest, identity.to_string(), &manifest)
    }
}
