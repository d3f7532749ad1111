//! The proxy's side of the delta stream, without sockets: what it has, what it lacks, what it says.

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

/// What is asked for of the program's own accord, at most; the rest of the subscriptions is for the manifest's.
const ASKED: usize = MAX_SUBSCRIPTIONS / 2;

/// Bytes of all resources together.
const BYTES: usize = 64 << 20;

/// The kinds whose resources a manifest names, in the order in which they are told: what was asked for before the
/// manifest, so that the server knows all of it when it makes one; addresses before the destinations that they lead to.
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

/// What is subscribed to, held, and owed an answer.
#[derive(Debug)]
pub(super) struct Subscriber {
    identity: SpiffeId,
    held: Resources,
    subscribed: BTreeSet<ResourceKey>,
    asked: BTreeSet<LookupKey>,
    /// The newest that came, not yet in force.
    coming: Option<Coming>,
    /// The one in force.
    current: Option<(Version, Manifest)>,
    /// The one that was refused last: it is not tried again.
    refused: Option<Version>,
    /// The control plane has something newer than the state in force, which was not taken.
    behind: bool,
    /// Responses in a row that were refused.
    wrong: usize,
    outbox: Vec<DeltaDiscoveryRequest>,
    node: Option<Node>,
}

/// So many responses in a row that cannot be taken are not an accident.
const WRONG: usize = 32;

#[derive(Debug)]
struct Coming {
    version: Version,
    manifest: Manifest,
    nonce: String,
    since: Instant,
    taken: bool,
}

/// A state of which every resource is there.
#[derive(Debug, Clone)]
pub(super) struct Complete {
    pub(super) version: Version,
    pub(super) manifest: Manifest,
    pub(super) resources: Resources,
    nonce: String,
}

impl Complete {
    /// One that came from disk and owes nobody an answer.
    pub(super) fn restored(manifest: Manifest, version: Version, resources: Resources) -> Self {
        Self {
            version,
            manifest,
            resources,
            nonce: String::new(),
        }
    }
}

impl Subscriber {
    pub(super) fn new(identity: SpiffeId) -> Self {
        Self {
            identity,
            held: Resources::new(),
            subscribed: BTreeSet::new(),
            asked: BTreeSet::new(),
            coming: None,
            current: None,
            refused: None,
            behind: false,
            wrong: 0,
            outbox: Vec::new(),
            node: None,
        }
    }

    pub(super) fn identity(&self) -> &SpiffeId {
        &self.identity
    }

    /// What was asked for.
    pub(super) fn asked_for(&self) -> BTreeSet<LookupKey> {
        self.asked.clone()
    }

    /// Whether the state in force is the newest that the control plane has told of.
    pub(super) fn is_current(&self) -> bool {
        self.current.is_some() && self.coming.is_none() && self.node.is_none() && !self.behind
    }

    /// Since when a state is coming of which something is still missing.
    pub(super) fn incomplete_since(&self) -> Option<Instant> {
        self.coming
            .as_ref()
            .filter(|coming| !coming.taken)
            .map(|coming| coming.since)
    }

    /// Takes up the state of an earlier process.
    pub(super) fn restore(&mut self, state: &Complete, asked: BTreeSet<LookupKey>) {
        self.held = state.resources.clone();
        self.current = Some((state.version.clone(), state.manifest.clone()));
        self.asked = asked;
    }

    /// A new stream: says who we are, what is wanted and what is there already.
    pub(super) fn begin(&mut self, node: Node) {
        self.outbox.clear();
        self.subscribed.clear();
        self.node = Some(node);
        // An answer is owed only on the stream that the question came over.
        self.coming = None;
        self.refused = None;
        self.behind = false;
        self.wrong = 0;
        let mut wanted: BTreeSet<ResourceKey> = self.held.keys().cloned().collect();
        wanted.extend(self.asked.iter().map(LookupKey::resource_key));
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

    /// What is to be sent now.
    pub(super) fn take_requests(&mut self) -> Vec<DeltaDiscoveryRequest> {
        let mut requests = std::mem::take(&mut self.outbox);
        if let Some(first) = requests.first_mut() {
            first.node = self.node.take();
        }
        requests
    }

    /// Wants something. False: there is too much already.
    pub(super) fn subscribe_to(&mut self, lookup: &LookupKey) -> bool {
        if self.asked.contains(lookup) {
            return true;
        }
        if self.asked.len() >= ASKED {
            return false;
        }
        self.asked.insert(lookup.clone());
        let key = lookup.resource_key();
        // Before a stream begins there is nobody to tell; its beginning tells all.
        if self.node.is_none() && self.subscribed.insert(key.clone()) {
            self.subscribe(key.kind, vec![key.name]);
        }
        true
    }

    /// Wants it no longer.
    pub(super) fn forget(&mut self, lookup: &LookupKey) {
        let key = lookup.resource_key();
        if self.asked.remove(lookup) && self.subscribed.remove(&key) && self.node.is_none() {
            self.unsubscribe(key.kind, vec![key.name]);
        }
    }

    /// Takes a response in; gives the asked-for destinations that do not exist.
    ///
    /// # Errors
    /// What no peer of good faith sends: the stream is to be ended.
    pub(super) fn receive(
        &mut self,
        response: DeltaDiscoveryResponse,
    ) -> Result<Vec<LookupKey>, String> {
        let kind = ResourceKind::from_type_url(&response.type_url)
            .ok_or_else(|| format!("an unknown type `{}`", cut(&response.type_url)))?;
        if kind == ResourceKind::Manifest {
            self.manifest(response);
            return Ok(Vec::new());
        }
        let mut wrong = None;
        for resource in response.resources {
            if let Err(why) = self.take(kind, resource) {
                wrong = Some(why);
            }
        }
        self.wrong = if wrong.is_some() { self.wrong + 1 } else { 0 };
        if let Some(why) = wrong.as_ref().filter(|_| self.wrong > WRONG) {
            return Err(why.clone());
        }
        self.answer(kind, response.nonce, wrong);
        Ok(self.removed(kind, response.removed_resources))
    }

    fn take(&mut self, kind: ResourceKind, resource: Resource) -> Result<(), String> {
        let received = open_resource(resource).map_err(|error| error.to_string())?;
        let name = cut(&received.key.name);
        if received.key.kind != kind {
            return Err(format!(
                "the resource `{name}` is of another type than the response"
            ));
        }
        if !self.subscribed.contains(&received.key) {
            return Err(format!("nobody asked for the resource `{name}`"));
        }
        let bytes: usize = self.held.values().map(|held| held.json.len()).sum();
        if bytes + received.json.len() > BYTES {
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
            // Without a subscription: programs ask for all sorts of names, and the next question asks anew.
            if self.asked.remove(&lookup) {
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
            // Removed: whoever is no longer known is told so by the end of the stream; the state in force stays.
            self.answer(ResourceKind::Manifest, response.nonce, None);
            return;
        };
        let read = open_resource(resource)
            .map_err(|error| error.to_string())
            .and_then(|received| {
                if received.key.kind != ResourceKind::Manifest || received.key.name != own {
                    return Err("this is not the manifest that was asked for".to_owned());
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
            self.coming = None;
            self.behind = false;
            self.answer(ResourceKind::Manifest, response.nonce, None);
            return;
        }
        if self.refused.as_ref() == Some(&version) {
            let why = Some("this state was refused before".to_owned());
            self.answer(ResourceKind::Manifest, response.nonce, why);
            return;
        }
        self.fetch(&manifest);
        self.coming = Some(Coming {
            version,
            manifest,
            nonce: response.nonce,
            since: Instant::now(),
            taken: false,
        });
    }

    /// Subscribes to what the manifest names and is not subscribed to yet; changed resources come by themselves.
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

    /// The state that is coming, once all of it is there; only once.
    pub(super) fn complete(&mut self) -> Option<Complete> {
        let coming = self.coming.as_mut().filter(|coming| !coming.taken)?;
        let resources = coming.manifest.entries.iter().map(|entry| {
            let held = self.held.get(&entry.key)?;
            (held.version == entry.version).then(|| (entry.key.clone(), held.clone()))
        });
        let resources: Resources = resources.collect::<Option<_>>()?;
        coming.taken = true;
        Some(Complete {
            version: coming.version.clone(),
            manifest: coming.manifest.clone(),
            resources,
            nonce: coming.nonce.clone(),
        })
    }

    /// This state is in force now.
    pub(super) fn accept(&mut self, state: &Complete) {
        self.current = Some((state.version.clone(), state.manifest.clone()));
        self.refused = None;
        self.behind = false;
        self.settle(state, None);
    }

    /// This state is refused; the one in force stays.
    pub(super) fn refuse(&mut self, state: &Complete, why: &str) {
        self.refused = Some(state.version.clone());
        self.behind = true;
        self.settle(state, Some(why.to_owned()));
    }

    /// The state that is coming is not completed in time.
    pub(super) fn give_up(&mut self) {
        let Some(coming) = self.coming.take() else {
            return;
        };
        self.behind = true;
        let lacks = |entry: &&merlon_config::snapshot::ManifestEntry| {
            self.held
                .get(&entry.key)
                .is_none_or(|held| held.version != entry.version)
        };
        let missing: Vec<&ResourceKey> = coming
            .manifest
            .entries
            .iter()
            .filter(lacks)
            .map(|entry| &entry.key)
            .collect();
        let named: Vec<String> = missing.iter().take(5).map(ToString::to_string).collect();
        let why = format!(
            "the manifest names {} resources that did not come, or not in that version: {}",
            missing.len(),
            named.join(", ")
        );
        // Asking for them anew makes the server send them again.
        for key in missing.into_iter().cloned().collect::<Vec<_>>() {
            self.subscribe(key.kind, vec![key.name]);
        }
        self.answer(ResourceKind::Manifest, coming.nonce, Some(why));
    }

    fn settle(&mut self, state: &Complete, error: Option<String>) {
        // A newer one may be coming; the answer to that will answer this one, too.
        if self
            .coming
            .as_ref()
            .is_some_and(|coming| coming.nonce == state.nonce)
        {
            self.coming = None;
            self.answer(ResourceKind::Manifest, state.nonce.clone(), error);
        }
        if self.coming.is_none() {
            self.forget_unused();
        }
    }

    /// Drops what neither the state in force nor a question needs any more.
    fn forget_unused(&mut self) {
        let Some((_, manifest)) = &self.current else {
            return;
        };
        let mut needed: BTreeSet<ResourceKey> = manifest
            .entries
            .iter()
            .map(|entry| entry.key.clone())
            .collect();
        needed.extend(self.asked.iter().map(LookupKey::resource_key));
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
            "it names {} resources, more than {MAX_SUBSCRIPTIONS}",
            manifest.entries.len()
        ));
    }
    let mut seen = BTreeSet::new();
    for entry in &manifest.entries {
        if entry.key.kind == ResourceKind::Manifest {
            return Err("it names a manifest".to_owned());
        }
        if !seen.insert(&entry.key) {
            return Err(format!("it names {} twice", entry.key));
        }
    }
    Ok(())
}

fn cut(text: &str) -> String {
    text.chars().take(256).collect()
}

#[cfg(test)]
mod tests;
