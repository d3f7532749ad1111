//! The state of one proxy: resources with their hashes, and the manifest that lists them.

use std::{collections::BTreeMap, sync::Arc};

use merlon_config::{
    name::SpiffeId,
    snapshot::{
        CertificateState, Manifest, ManifestEntry, ResourceKey, ResourceKind, SecretState,
        TrustBundle, Version,
    },
};
use serde::Serialize;

/// One resource of a push: its key, its bytes and their hash.
#[derive(Clone, PartialEq, Eq)]
pub struct StateResource {
    key: ResourceKey,
    version: Version,
    json: Arc<[u8]>,
}

impl StateResource {
    /// Serializes `content` as JSON. Equal contents give equal bytes, because struct fields keep their order and maps
    /// are sorted.
    pub(crate) fn new<T: Serialize>(kind: ResourceKind, name: String, content: &T) -> Self {
        // INVARIANT: snapshot types consist of structs, lists and maps with text keys, so they serialize to JSON. If
        // one did not, every proxy would reject the empty bytes and keep its state.
        let json = serde_json::to_vec(content).unwrap_or_default();
        Self {
            key: ResourceKey { kind, name },
            version: Version::of(&json),
            json: json.into(),
        }
    }

    /// The trust bundle of a trust domain. It comes from the certificate authority, not from the compiler.
    pub fn trust_bundle(bundle: &TrustBundle) -> Self {
        let name = bundle.trust_domain.to_string();
        Self::new(ResourceKind::TrustBundle, name, bundle)
    }

    /// A gateway's certificate. It does not come from the compiler, either.
    pub fn certificate(certificate: &CertificateState) -> Self {
        let name = certificate.name.to_string();
        Self::new(ResourceKind::Certificate, name, certificate)
    }

    /// A secret. It does not come from the compiler, either.
    pub fn secret(secret: &SecretState) -> Self {
        Self::new(ResourceKind::Secret, secret.name.to_string(), secret)
    }

    /// Kind and name.
    pub fn key(&self) -> &ResourceKey {
        &self.key
    }

    /// SHA-256 of [`StateResource::json`].
    pub fn version(&self) -> &Version {
        &self.version
    }

    /// The content as JSON of the kind's type in `merlon_config::snapshot`.
    pub fn json(&self) -> &[u8] {
        &self.json
    }
}

impl std::fmt::Debug for StateResource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{:?}", self.key, self.version)
    }
}

/// The resources of one proxy by key, without the manifest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProxyState {
    resources: BTreeMap<ResourceKey, Arc<StateResource>>,
}

impl ProxyState {
    /// Adds a resource, or replaces the one with the same key.
    pub fn insert(&mut self, resource: Arc<StateResource>) {
        self.resources.insert(resource.key.clone(), resource);
    }

    /// The resource with this key.
    pub fn get(&self, key: &ResourceKey) -> Option<&Arc<StateResource>> {
        self.resources.get(key)
    }

    /// All resources, in order of key.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<StateResource>> {
        self.resources.values()
    }

    /// Removes the resources for which `keep` returns `false`.
    pub fn retain(&mut self, mut keep: impl FnMut(&ResourceKey) -> bool) {
        self.resources.retain(|key, _| keep(key));
    }

    /// The number of resources.
    pub fn len(&self) -> usize {
        self.resources.len()
    }

    /// Whether there are no resources. A compiled state is never empty.
    pub fn is_empty(&self) -> bool {
        self.resources.is_empty()
    }

    /// The manifest, which lists all resources. Its version is the version of the whole state.
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
