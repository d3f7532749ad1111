//! The proxy's side of the delta discovery protocol, without sockets.

use std::collections::BTreeSet;

use merlon_api::{
    MAX_SUBSCRIPTIONS,
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource, Status},
    open_resource,
};
use merlon_config::{
    name::SpiffeId,
    snapshot::{Manifest, ResourceKey, ResourceKind, Version},
};
use tokio::time::Instant;

use crate::{
    control::assemble::{HeldResource, Resources},
    state::destinations::LookupKey,
};

/// Maximum number of lookups; the other subscriptions are for resources of the manifest.
const MAX_LOOKUPS: usize = MAX_SUBSCRIPTIONS / 2;

/// Maximum size of all resources together.
const MAX_BYTES: usize = 64 << 20;

/// The kinds of resources in a manifest, in the order in which a new stream subscribes to them. The manifest comes last, so
/// that the server knows all subscriptions when it builds one; addresses come before the destinations that they refer to.
const NAMED: [ResourceKind; 8] = [
    ResourceKind::Mesh,
    ResourceKind::TrustBundle,
    ResourceKind::Workload,
    ResourceKind::Service,
    ResourceKind::Address,
    ResourceKind::Destination,
    ResourceKind::Certificate,
    ResourceKind::Secret,
];

/// Subscriptions, received resources, and pending acknowledgements.
#[derive(Debug)]
pub(crate) struct Subscriber {
    identity: SpiffeId,
    held: Resources,
    subscribed: BTreeSet<ResourceKey>,
    lookups: BTreeSet<LookupKey>,
    /// The newest received state, which is not in force yet.
    pending: Option<PendingState>,
    /// The state in force.
    current: Option<(Version, Manifest)>,
    /// The last rejected state, which is not retried.
    rejected: Option<Version>,
    /// The control plane has a newer state, which was not accepted.
    behind: bool,
    /// Consecutive rejected responses.
    failures: usize,
    outbox: Vec<DeltaDiscoveryRequest>,
    node: Option<Node>,
    /// The number of streams that were started.
    streams: u64,
}

/// The stream ends after more than this many consecutive rejected responses.
const MAX_FAILURES: usize = 32;

#[derive(Debug)]
struct PendingState {
    version: Version,
    manifest: Manifest,
    nonce: String,
    since: Instant,
    compiling: bool,
}

/// A state with all its resources.
#[derive(Debug, Clone)]
pub(crate) struct Complete {
    pub(crate) version: Version,
    pub(crate) manifest: Manifest,
    pub(crate) resources: Resources,
    nonce: String,
    /// The stream of the manifest: another stream may use the same nonce.
    stream: u64,
}

impl Complete {
    /// A state from disk, which needs no acknowledgement.
    pub(crate) fn restored(manifest: Manifest, version: Version, resources: Resources) -> Self {
        Self {
            version,
            manifest,
            resources,
            nonce: String::new(),
            stream: 0,
        }
    }
}

impl Subscriber {
    pub(crate) fn new(identity: SpiffeId) -> Self {
        Self {
            identity,
            held: Resources::new(),
            subscribed: BTreeSet::new(),
            lookups: BTreeSet::new(),
            pending: None,
            current: None,
            rejected: None,
            behind: false,
            failures: 0,
            outbox: Vec::new(),
            node: None,
            streams: 0,
        }
    }

    pub(crate) fn identity(&self) -> &SpiffeId {
        &self.identity
    }

    /// The lookups that are subscribed to.
    pub(crate) fn lookups(&self) -> BTreeSet<LookupKey> {
        self.lookups.clone()
    }

    /// Whether the state in force is the newest one of the control plane.
    pub(crate) fn is_current(&self) -> bool {
        self.current.is_some() && self.pending.is_none() && self.node.is_none() && !self.behind
    }

    /// Since when a pending state has been incomplete.
    pub(crate) fn incomplete_since(&self) -> Option<Instant> {
        self.pending
            .as_ref()
            .filter(|pending| !pending.compiling)
            .map(|pending| pending.since)
    }

    /// Restores the state of an earlier process.
    pub(crate) fn restore(&mut self, state: &Complete, lookups: BTreeSet<LookupKey>) {
        self.held = state.resources.clone();
        self.current = Some((state.version.clone(), state.manifest.clone()));
        self.lookups = lookups;
    }

    /// Starts a stream: queues the node, the subscriptions, and the versions of the resources that are already present.
    pub(crate) fn begin(&mut self, node: Node) {
        self.outbox.clear();
        self.subscribed.clear();
        self.node = Some(node);
        self.streams += 1;
        // Acknowledgements are due only on the stream of their response.
        self.pending = None;
        self.rejected = None;
        self.behind = false;
        self.failures = 0;
        let mut wanted: BTreeSet<ResourceKey> = self.held.keys().cloned().collect();
        wanted.extend(self.lookups.iter().map(LookupKey::resource_key));
        for kind in NAMED {
            let names: Vec<String> = wanted
                .iter()
                .filter(|key| key.kind == kind)
                .map(|key| key.name.clone())
                .collect();
            if names.is_empty() {
                continue;
            }
            let has = self.held.iter().filter(|(key, _)| key.kind == kind);
            let has = has.map(|(key, held)| (key.name.clone(), held.version.to_string()));
            self.outbox.push(DeltaDiscoveryRequest {
                type_url: kind.type_url().to_owned(),
                initial_resource_versions: has.collect(),
                resource_names_subscribe: names,
                ..DeltaDiscoveryRequest::default()
            });
        }
        self.subscribed = wanted;
        let own = self.identity.to_string();
        let has = self
            .current
            .as_ref()
            .map(|(version, _)| (own.clone(), version.to_string()));
        self.outbox.push(DeltaDiscoveryRequest {
            type_url: ResourceKind::Manifest.type_url().to_owned(),
            initial_resource_versions: has.into_iter().collect(),
            resource_names_subscribe: vec![own],
            ..DeltaDiscoveryRequest::default()
        });
    }

    /// The queued requests.
    pub(crate) fn take_requests(&mut self) -> Vec<DeltaDiscoveryRequest> {
        let mut requests = std::mem::take(&mut self.outbox);
        if let Some(first) = requests.first_mut() {
            first.node = self.node.take();
        }
        requests
    }

    /// Subscribes to a lookup. False if the limit is reached.
    pub(crate) fn subscribe_to(&mut self, lookup: &LookupKey) -> bool {
        if self.lookups.contains(lookup) {
            return true;
        }
        if self.lookups.len() >= MAX_LOOKUPS {
            return false;
        }
        self.lookups.insert(lookup.clone());
        let key = lookup.resource_key();
        // Before a stream starts, nothing is sent; its first requests contain all subscriptions.
        if self.node.is_none() && self.subscribed.insert(key.clone()) {
            self.subscribe(key.kind, vec![key.name]);
        }
        true
    }

    /// Unsubscribes from a lookup.
    pub(crate) fn unsubscribe_from(&mut self, lookup: &LookupKey) {
        let key = lookup.resource_key();
        if self.lookups.remove(lookup) && self.subscribed.remove(&key) && self.node.is_none() {
            self.unsubscribe(key.kind, vec![key.name]);
        }
    }

    /// Processes a response; returns the lookups whose destination does not exist.
    ///
    /// # Errors
    /// A protocol violation; the stream must end.
    pub(crate) fn receive(
        &mut self,
        response: DeltaDiscoveryResponse,
    ) -> Result<Vec<LookupKey>, String> {
        let kind = ResourceKind::from_type_url(&response.type_url)
            .ok_or_else(|| format!("unknown type `{}`", truncated(&response.type_url)))?;
        if kind == ResourceKind::Manifest {
            self.manifest(response);
            return Ok(Vec::new());
        }
        let mut failure = None;
        for resource in response.resources {
            if let Err(why) = self.take(kind, resource) {
                failure = Some(why);
            }
        }
        self.failures = if failure.is_some() {
            self.failures + 1
        } else {
            0
        };
        if let Some(why) = failure.as_ref().filter(|_| self.failures > MAX_FAILURES) {
            return Err(why.clone());
        }
        self.answer(kind, response.nonce, failure);
        Ok(self.removed(kind, response.removed_resources))
    }

    fn take(&mut self, kind: ResourceKind, resource: Resource) -> Result<(), String> {
        let received = open_resource(resource).map_err(|error| error.to_string())?;
        let name = truncated(&received.key.name);
        if received.key.kind != kind {
            return Err(format!(
                "the resource `{name}` is of another type than the response"
            ));
        }
        if !self.subscribed.contains(&received.key) {
            return Err(format!("there is no subscription to the resource `{name}`"));
        }
        let bytes: usize = self.held.values().map(|held| held.json.len()).sum();
        if bytes + received.json.len() > MAX_BYTES {
            return Err(format!(
                "with the resource `{name}` the state would be larger than 64 MiB"
            ));
        }
        let held = HeldResource {
            version: received.version,
            json: received.json.into(),
        };
        self.held.insert(received.key, held);
        Ok(())
    }

    fn removed(&mut self, kind: ResourceKind, names: Vec<String>) -> Vec<LookupKey> {
        let mut gone = Vec::new();
        for name in names {
            let key = ResourceKey { kind, name };
            if kind != ResourceKind::Destination || !self.subscribed.contains(&key) {
                continue;
            }
            let Ok(lookup) = key.name.parse::<LookupKey>() else {
                continue;
            };
            // Unsubscribe, since programs may call many absent names; the next call looks the name up again.
            if self.lookups.remove(&lookup) {
                self.subscribed.remove(&key);
                self.unsubscribe(kind, vec![key.name]);
            }
            gone.push(lookup);
        }
        gone
    }

    fn manifest(&mut self, response: DeltaDiscoveryResponse) {
        let own = self.identity.to_string();
        let Some(resource) = response.resources.into_iter().next() else {
            // The manifest was removed. The state in force stays; if the proxy is no longer known, the stream ends.
            self.answer(ResourceKind::Manifest, response.nonce, None);
            return;
        };
        let read = open_resource(resource)
            .map_err(|error| error.to_string())
            .and_then(|received| {
                if received.key.kind != ResourceKind::Manifest || received.key.name != own {
                    return Err("the resource is not the manifest of this proxy".to_owned());
                }
                let manifest: Manifest =
                    serde_json::from_slice(&received.json).map_err(|error| error.to_string())?;
                check(&manifest)?;
                Ok((received.version, manifest))
            });
        let (version, manifest) = match read {
            Ok(read) => read,
            Err(why) => {
                self.behind = true;
                self.answer(ResourceKind::Manifest, response.nonce, Some(why));
                return;
            }
        };
        if self
            .current
            .as_ref()
            .is_some_and(|(current, _)| *current == version)
        {
            self.pending = None;
            self.behind = false;
            self.answer(ResourceKind::Manifest, response.nonce, None);
            return;
        }
        if self.rejected.as_ref() == Some(&version) {
            let why = Some("this state was rejected before".to_owned());
            self.answer(ResourceKind::Manifest, response.nonce, why);
            return;
        }
        self.fetch(&manifest);
        self.pending = Some(PendingState {
            version,
            manifest,
            nonce: response.nonce,
            since: Instant::now(),
            compiling: false,
        });
    }

    /// Subscribes to the resources of the manifest that are not subscribed to yet. Changes of others are pushed.
    fn fetch(&mut self, manifest: &Manifest) {
        for kind in NAMED {
            let entries = manifest
                .entries
                .iter()
                .filter(|entry| entry.key.kind == kind);
            let new: Vec<String> = entries
                .filter(|entry| !self.subscribed.contains(&entry.key))
                .map(|entry| entry.key.name.clone())
                .collect();
            if !new.is_empty() {
                let keys = new.iter().map(|name| ResourceKey {
                    kind,
                    name: name.clone(),
                });
                self.subscribed.extend(keys);
                self.subscribe(kind, new);
            }
        }
    }

    /// The pending state, if it is complete. Returned once.
    pub(crate) fn complete(&mut self) -> Option<Complete> {
        let pending = self.pending.as_mut().filter(|pending| !pending.compiling)?;
        let resources = pending.manifest.entries.iter().map(|entry| {
            let held = self.held.get(&entry.key)?;
            (held.version == entry.version).then(|| (entry.key.clone(), held.clone()))
        });
        let resources: Resources = resources.collect::<Option<_>>()?;
        pending.compiling = true;
        Some(Complete {
            version: pending.version.clone(),
            manifest: pending.manifest.clone(),
            resources,
            nonce: pending.nonce.clone(),
            stream: self.streams,
        })
    }

    /// Whether the control plane withdrew a state while it was compiled: it sent the manifest of the state in force
    /// again, or the stream ended. Then it considers the proxy to enforce the state in force.
    fn is_withdrawn(&self, state: &Complete) -> bool {
        self.pending.is_none() || state.stream != self.streams
    }

    /// Acknowledges a compiled state. If it returns false, the state must not be put in force.
    #[must_use]
    pub(crate) fn accept(&mut self, state: &Complete) -> bool {
        if self.is_withdrawn(state) {
            return false;
        }
        self.current = Some((state.version.clone(), state.manifest.clone()));
        self.rejected = None;
        self.behind = false;
        self.settle(state, None);
        true
    }

    /// Rejects a state; the one in force stays.
    pub(crate) fn refuse(&mut self, state: &Complete, why: &str) {
        if self.is_withdrawn(state) {
            return;
        }
        self.rejected = Some(state.version.clone());
        self.behind = true;
        self.settle(state, Some(why.to_owned()));
    }

    /// Rejects the pending state, which was not completed in time.
    pub(crate) fn give_up(&mut self) {
        let Some(pending) = self.pending.take() else {
            return;
        };
        self.behind = true;
        let lacks = |entry: &&merlon_config::snapshot::ManifestEntry| {
            self.held
                .get(&entry.key)
                .is_none_or(|held| held.version != entry.version)
        };
        let missing: Vec<&ResourceKey> = pending
            .manifest
            .entries
            .iter()
            .filter(lacks)
            .map(|entry| &entry.key)
            .collect();
        let named: Vec<String> = missing.iter().take(5).map(ToString::to_string).collect();
        let why = format!(
            "{} resources of the manifest did not arrive in the expected version: {}",
            missing.len(),
            named.join(", ")
        );
        // Subscribing again makes the server send them again.
        for key in missing.into_iter().cloned().collect::<Vec<_>>() {
            self.subscribe(key.kind, vec![key.name]);
        }
        self.answer(ResourceKind::Manifest, pending.nonce, Some(why));
    }

    fn settle(&mut self, state: &Complete, error: Option<String>) {
        // If a newer state is pending, its acknowledgement covers this one.
        if self
            .pending
            .as_ref()
            .is_some_and(|pending| pending.nonce == state.nonce)
        {
            self.pending = None;
            self.answer(ResourceKind::Manifest, state.nonce.clone(), error);
        }
        if self.pending.is_none() {
            self.drop_unused();
        }
    }

    /// Drops resources that neither the state in force nor a lookup needs any more.
    fn drop_unused(&mut self) {
        let Some((_, manifest)) = &self.current else {
            return;
        };
        let mut needed: BTreeSet<ResourceKey> = manifest
            .entries
            .iter()
            .map(|entry| entry.key.clone())
            .collect();
        needed.extend(self.lookups.iter().map(LookupKey::resource_key));
        self.held.retain(|key, _| needed.contains(key));
        for kind in NAMED {
            let unneeded = self
                .subscribed
                .iter()
                .filter(|key| key.kind == kind && !needed.contains(key));
            let names: Vec<String> = unneeded.map(|key| key.name.clone()).collect();
            if !names.is_empty() {
                self.unsubscribe(kind, names);
            }
        }
        self.subscribed.retain(|key| needed.contains(key));
    }

    fn subscribe(&mut self, kind: ResourceKind, names: Vec<String>) {
        self.outbox.push(DeltaDiscoveryRequest {
            type_url: kind.type_url().to_owned(),
            resource_names_subscribe: names,
            ..DeltaDiscoveryRequest::default()
        });
    }

    fn unsubscribe(&mut self, kind: ResourceKind, names: Vec<String>) {
        self.outbox.push(DeltaDiscoveryRequest {
            type_url: kind.type_url().to_owned(),
            resource_names_unsubscribe: names,
            ..DeltaDiscoveryRequest::default()
        });
    }

    fn answer(&mut self, kind: ResourceKind, nonce: String, error: Option<String>) {
        self.outbox.push(DeltaDiscoveryRequest {
            type_url: kind.type_url().to_owned(),
            response_nonce: nonce,
            error_detail: error.map(|message| Status {
                // INVALID_ARGUMENT
                code: 3,
                message: message.chars().take(4_000).collect(),
                ..Status::default()
            }),
            ..DeltaDiscoveryRequest::default()
        });
    }
}

fn check(manifest: &Manifest) -> Result<(), String> {
    if manifest.entries.len() > MAX_SUBSCRIPTIONS {
        return Err(format!(
            "the manifest contains {} resources, more than {MAX_SUBSCRIPTIONS}",
            manifest.entries.len()
        ));
    }
    let mut seen = BTreeSet::new();
    for entry in &manifest.entries {
        if entry.key.kind == ResourceKind::Manifest {
            return Err("the manifest contains a manifest".to_owned());
        }
        if !seen.insert(&entry.key) {
            return Err(format!("the manifest contains {} twice", entry.key));
        }
    }
    Ok(())
}

fn truncated(text: &str) -> String {
    text.chars().take(256).collect()
}

#[cfg(test)]
mod tests;
