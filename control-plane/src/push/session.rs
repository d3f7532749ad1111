//! The discovery protocol of one proxy, without sockets and clocks: what it was sent, and what is due.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use merlon_api::{
    MAX_NAME, MAX_SUBSCRIPTIONS, METADATA_KINDS, METADATA_VERSION, METADATA_WORKLOAD,
    discovery::{ControlPlane, DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource},
    metadata, seal_resource,
};
use merlon_compile::{Proxy, ProxyState, StateResource, Wanted};
use merlon_config::{
    name::{ServiceName, SpiffeId},
    snapshot::{AddressState, ResourceKey, ResourceKind, Version},
};
use tonic::Status;

use crate::state::snapshot::Snapshot;

/// The approximate maximum size of the resources in one response; a single resource can be larger.
const RESPONSE_BYTES: usize = 512 << 10;
/// Maximum number of unanswered manifests that are tracked.
const OPEN_MANIFESTS: usize = 16;

/// What is known about a name that the proxy is subscribed to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum KnownVersion {
    /// Nothing was sent, and the proxy did not report a version.
    Unknown,
    /// This version was sent, or the proxy reported it.
    Version(Version),
    /// The proxy was informed that the resource does not exist.
    Absent,
}

/// The node in the first message of a proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeInfo {
    pub(crate) id: String,
    pub(crate) workload: Option<String>,
    pub(crate) version: String,
    /// The kinds that it supports, of those that were added to the protocol later.
    pub(crate) kinds: Vec<ResourceKind>,
}

/// The response of the proxy to a push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ProxyAck {
    /// The proxy enforces the state of this manifest.
    Acknowledged(Version),
    /// The proxy keeps its previous state. The version is that of the rejected manifest; `None` for other kinds.
    Refused(Option<Version>, String),
}

/// One stream of one proxy.
#[derive(Debug)]
pub(crate) struct Session {
    identity: SpiffeId,
    node: Option<NodeInfo>,
    subscribed: BTreeMap<ResourceKind, BTreeMap<String, KnownVersion>>,
    /// What the proxy subscribed to on demand.
    wanted: Wanted,
    proxy: Option<Arc<Proxy>>,
    state: ProxyState,
    manifest: Option<StateResource>,
    nonce: u64,
    /// Nonces and versions of unanswered manifests, oldest first.
    open: Vec<(String, Version)>,
    /// See [`Session::is_held`].
    held: bool,
}

impl Session {
    pub(crate) fn new(identity: SpiffeId) -> Self {
        Self {
            identity,
            node: None,
            subscribed: BTreeMap::new(),
            wanted: Wanted::default(),
            proxy: None,
            state: ProxyState::default(),
            manifest: None,
            nonce: 0,
            open: Vec::new(),
            held: false,
        }
    }

    pub(crate) fn node(&self) -> Option<&NodeInfo> {
        self.node.as_ref()
    }

    pub(crate) fn proxy(&self) -> Option<&Arc<Proxy>> {
        self.proxy.as_ref()
    }

    /// The version of the state that the proxy should enforce.
    pub(crate) fn version(&self) -> Option<&Version> {
        self.manifest.as_ref().map(StateResource::version)
    }

    /// The number of subscribed names of each kind.
    pub(crate) fn subscriptions(&self) -> BTreeMap<ResourceKind, usize> {
        self.subscribed
            .iter()
            .map(|(kind, names)| (*kind, names.len()))
            .collect()
    }

    /// Processes a message. The next [`Session::due`] returns the responses.
    ///
    /// # Errors
    /// The status that ends the stream. A violation of the protocol is never answered with a guess.
    pub(crate) fn receive(
        &mut self,
        request: &DeltaDiscoveryRequest,
        snapshot: &Snapshot,
    ) -> Result<Option<ProxyAck>, Status> {
        if self.node.is_none() {
            let node = request.node.as_ref();
            let node = node.ok_or_else(|| invalid("the first message has no `node`"))?;
            self.node = Some(node_info(node)?);
        }
        let kind = ResourceKind::from_type_url(&request.type_url).ok_or_else(|| {
            let url: String = request.type_url.chars().take(MAX_NAME).collect();
            invalid(format!(
                "`{}` is not a resource type of Merlon",
                url.escape_debug()
            ))
        })?;
        let subscribe = &request.resource_names_subscribe;
        let unsubscribe = &request.resource_names_unsubscribe;
        for name in subscribe.iter().chain(unsubscribe) {
            check_name(kind, name)?;
        }
        if request.response_nonce.len() > MAX_NAME {
            return Err(invalid(format!(
                "`response_nonce` is longer than {MAX_NAME} bytes"
            )));
        }
        if subscribe.is_empty() && unsubscribe.is_empty() && request.response_nonce.is_empty() {
            return Err(invalid(
                "a message must subscribe by name, unsubscribe or acknowledge: there is no wildcard",
            ));
        }
        if self.proxy.is_none() {
            // The destinations of its own listeners must be known before those that it subscribes to on demand.
            self.refresh(snapshot)?;
        }
        self.unsubscribe(kind, unsubscribe);
        self.subscribe(kind, request, snapshot)?;
        let answer = self.answer(kind, request);
        self.refresh(snapshot)?;
        if kind == ResourceKind::Destination {
            self.held = false;
        }
        self.hold_back(kind, request);
        Ok(answer.or_else(|| self.has_already(kind, request)))
    }

    fn unsubscribe(&mut self, kind: ResourceKind, names: &[String]) {
        let subscribed = self.subscribed.entry(kind).or_default();
        for name in names {
            subscribed.remove(name);
            match kind {
                ResourceKind::Destination => {
                    if let Ok(name) = name.parse() {
                        self.wanted.services.remove(&name);
                    }
                }
                ResourceKind::Address => {
                    if let Ok(address) = name.parse() {
                        self.wanted.addresses.remove(&address);
                    }
                }
                _ => {}
            }
        }
    }

    fn subscribe(
        &mut self,
        kind: ResourceKind,
        request: &DeltaDiscoveryRequest,
        snapshot: &Snapshot,
    ) -> Result<(), Status> {
        let has = &request.initial_resource_versions;
        for name in &request.resource_names_subscribe {
            if kind == ResourceKind::Manifest && *name != self.identity.to_string() {
                return Err(Status::permission_denied(format!(
                    "`{}` is not the identity of this connection, which is `{}`",
                    name.escape_debug(),
                    self.identity
                )));
            }
            let holds = match has.get(name) {
                Some(version) => KnownVersion::Version(Version::from(version.clone())),
                None => KnownVersion::Unknown,
            };
            // A proxy that subscribes again to a resource has lost it.
            self.subscribed
                .entry(kind)
                .or_default()
                .insert(name.clone(), holds);
            if kind == ResourceKind::Destination
                && let Ok(service) = name.parse()
            {
                // Destinations of the proxy's own listeners come and go with the listeners; only others are on demand.
                let given = self
                    .proxy
                    .as_ref()
                    .is_some_and(|p| p.destinations().contains(&service));
                // The destination of an address comes and goes with the address.
                let is_reached = |state| matches!(state, AddressState::Service { service: other, .. } if other == service);
                let addresses = &mut self.wanted.addresses.iter();
                let is_reached =
                    addresses.any(|address| is_reached(snapshot.mesh.address(*address)));
                if !given && !is_reached {
                    self.wanted.services.insert(service);
                }
            }
            if kind == ResourceKind::Address
                && let Ok(address) = name.parse()
            {
                self.wanted.addresses.insert(address);
            }
        }
        let all: usize = self.subscribed.values().map(BTreeMap::len).sum();
        if all > MAX_SUBSCRIPTIONS {
            return Err(Status::resource_exhausted(format!(
                "a proxy may be subscribed to {MAX_SUBSCRIPTIONS} names, not to {all}"
            )));
        }
        Ok(())
    }

    fn answer(&mut self, kind: ResourceKind, request: &DeltaDiscoveryRequest) -> Option<ProxyAck> {
        let version = match kind {
            ResourceKind::Manifest => {
                let nonce = &request.response_nonce;
                let at = self.open.iter().position(|(open, _)| open == nonce)?;
                // A response to a later manifest covers the earlier ones.
                self.open
                    .drain(..=at)
                    .next_back()
                    .map(|(_, version)| version)
            }
            _ => None,
        };
        match (&request.error_detail, version) {
            (Some(error), version) => {
                let reason: String = error.message.chars().take(2_000).collect();
                Some(ProxyAck::Refused(version, reason))
            }
            (None, Some(version)) => Some(ProxyAck::Acknowledged(version)),
            (None, None) => None,
        }
    }

    /// A proxy that reconnects with the current state has acknowledged it on an earlier stream.
    fn has_already(&self, kind: ResourceKind, request: &DeltaDiscoveryRequest) -> Option<ProxyAck> {
        let current = self.version().filter(|_| kind == ResourceKind::Manifest)?;
        let has = request
            .initial_resource_versions
            .get(&self.identity.to_string())?;
        (has == current.as_str()).then(|| ProxyAck::Acknowledged(current.clone()))
    }

    /// A proxy that reconnects reports its state type by type. A manifest that arrives before the proxy has named its
    /// on-demand destinations would make it drop them, only to receive them again. So a manifest that differs from the
    /// proxy's waits for the destinations, and the caller limits the delay.
    fn hold_back(&mut self, kind: ResourceKind, request: &DeltaDiscoveryRequest) {
        if kind != ResourceKind::Manifest
            || self.subscribed.contains_key(&ResourceKind::Destination)
        {
            return;
        }
        let mut has = request.initial_resource_versions.values();
        let current = self.version().map(Version::as_str);
        self.held = has.any(|version| Some(version.as_str()) != current);
    }

    /// Whether a manifest waits for the proxy to name its destinations.
    pub(crate) fn is_held(&self) -> bool {
        self.held
    }

    /// Stops waiting.
    pub(crate) fn release(&mut self) {
        self.held = false;
    }

    /// Computes the state that the proxy should have.
    ///
    /// # Errors
    /// No resource has the identity of the proxy (any longer).
    pub(crate) fn refresh(&mut self, snapshot: &Snapshot) -> Result<(), Status> {
        let workload = self.node.as_ref().and_then(|node| node.workload.as_deref());
        let found = snapshot.mesh.proxy(&self.identity, workload);
        let proxy = found.map_err(|unknown| Status::permission_denied(unknown.to_string()))?;
        let mut state = snapshot.mesh.proxy_state(proxy, &self.wanted);
        if let Some(bundle) = &snapshot.bundle {
            state.insert(Arc::clone(bundle));
        }
        for granted in proxy.secrets() {
            if let Some(secret) = snapshot.secrets.get(granted) {
                state.insert(Arc::clone(secret));
            }
        }
        // Certificates are only pushed to the gateways that serve with them.
        for name in proxy.certificates() {
            if let Some(certificate) = snapshot.certificates.get(name) {
                state.insert(Arc::clone(certificate));
            }
        }
        let known = self.node.as_ref().map_or(&[][..], |node| &node.kinds);
        state.retain(|key| {
            !ResourceKind::NEGOTIATED.contains(&key.kind) || known.contains(&key.kind)
        });
        self.proxy = Some(Arc::clone(proxy));
        self.manifest = Some(state.manifest(&self.identity));
        self.state = state;
        Ok(())
    }

    /// Every subscribed resource that the proxy does not have, and nothing else. The manifest comes last, so that most of
    /// the resources that it names have arrived.
    pub(crate) fn due(&mut self) -> Vec<DeltaDiscoveryResponse> {
        let mut responses = Vec::new();
        for kind in SENDING_ORDER {
            if kind == ResourceKind::Manifest && self.held {
                continue;
            }
            let Some(subscribed) = self.subscribed.get_mut(&kind) else {
                continue;
            };
            let mut batch = Batch::default();
            for (name, holds) in subscribed.iter_mut() {
                let key = ResourceKey {
                    kind,
                    name: name.clone(),
                };
                let current = match kind {
                    ResourceKind::Manifest => self.manifest.as_ref(),
                    _ => self.state.get(&key).map(AsRef::as_ref),
                };
                match current {
                    Some(resource) => {
                        let has = KnownVersion::Version(resource.version().clone());
                        if *holds != has {
                            batch.add(resource);
                            *holds = has;
                        }
                    }
                    None if *holds != KnownVersion::Absent => {
                        batch.removed.push(name.clone());
                        *holds = KnownVersion::Absent;
                    }
                    None => {}
                }
            }
            for (resources, removed_resources) in batch.parts() {
                responses.push(self.response(kind, resources, removed_resources));
            }
        }
        responses
    }

    fn response(
        &mut self,
        kind: ResourceKind,
        resources: Vec<Resource>,
        removed_resources: Vec<String>,
    ) -> DeltaDiscoveryResponse {
        self.nonce += 1;
        let nonce = self.nonce.to_string();
        if kind == ResourceKind::Manifest
            && let Some(manifest) = &self.manifest
        {
            if self.open.len() == OPEN_MANIFESTS {
                self.open.remove(0);
            }
            self.open.push((nonce.clone(), manifest.version().clone()));
        }
        DeltaDiscoveryResponse {
            system_version_info: self.version().map(ToString::to_string).unwrap_or_default(),
            resources,
            type_url: kind.type_url().to_owned(),
            nonce,
            removed_resources,
            control_plane: Some(ControlPlane {
                identifier: "merlon-control-plane".to_owned(),
            }),
        }
    }
}

const SENDING_ORDER: [ResourceKind; 9] = [
    ResourceKind::Mesh,
    ResourceKind::TrustBundle,
    ResourceKind::Workload,
    ResourceKind::Service,
    ResourceKind::Destination,
    ResourceKind::Address,
    ResourceKind::Certificate,
    ResourceKind::Secret,
    ResourceKind::Manifest,
];

/// Splits the resources of one kind into responses of bounded size.
#[derive(Debug, Default)]
struct Batch {
    full: Vec<Vec<Resource>>,
    last: Vec<Resource>,
    bytes: usize,
    removed: Vec<String>,
}

impl Batch {
    fn add(&mut self, resource: &StateResource) {
        let size = resource.json().len();
        if !self.last.is_empty() && self.bytes + size > RESPONSE_BYTES {
            self.full.push(std::mem::take(&mut self.last));
            self.bytes = 0;
        }
        self.bytes += size;
        self.last.push(seal_resource(
            resource.key(),
            resource.version(),
            resource.json(),
        ));
    }

    /// The responses; the last one contains the removed names.
    fn parts(self) -> impl Iterator<Item = (Vec<Resource>, Vec<String>)> {
        let end = !self.last.is_empty() || !self.removed.is_empty();
        let full = self
            .full
            .into_iter()
            .map(|resources| (resources, Vec::new()));
        full.chain(end.then_some((self.last, self.removed)))
    }
}

fn node_info(node: &Node) -> Result<NodeInfo, Status> {
    let printable = |text: &str| text.bytes().all(|b| b.is_ascii_graphic());
    if node.id.is_empty() || node.id.len() > MAX_NAME || !printable(&node.id) {
        return Err(invalid(format!(
            "`node.id` must be 1 to {MAX_NAME} visible ASCII characters"
        )));
    }
    let text = |key| {
        let text = metadata(node, key).filter(|text| !text.is_empty());
        let good = text.is_none_or(|text| text.len() <= MAX_NAME && printable(text));
        if good {
            Ok(text.map(str::to_owned))
        } else {
            Err(invalid(format!(
                "`node.metadata.{key}` must be at most {MAX_NAME} visible ASCII characters"
            )))
        }
    };
    Ok(NodeInfo {
        id: node.id.clone(),
        kinds: text(METADATA_KINDS)?
            .unwrap_or_default()
            .split(',')
            .filter_map(ResourceKind::from_type_url)
            .collect(),
        workload: text(METADATA_WORKLOAD)?,
        version: text(METADATA_VERSION)?.unwrap_or_default(),
    })
}

/// Two kinds of names may be longer than [`MAX_NAME`]: the SPIFFE ID of the connection, and `namespace/name`, whose parts are
/// bounded.
fn check_name(kind: ResourceKind, name: &str) -> Result<(), Status> {
    let ours = kind == ResourceKind::Manifest || name.parse::<ServiceName>().is_ok();
    if name.is_empty() || (name.len() > MAX_NAME && !ours) {
        return Err(invalid(format!(
            "a resource name must have 1 to {MAX_NAME} bytes"
        )));
    }
    if kind == ResourceKind::Address && name.parse::<SocketAddr>().is_err() {
        return Err(invalid(
            "an address looks like `10.0.0.7:80` or `[fd00::7]:80`",
        ));
    }
    if name == "*" {
        return Err(invalid("subscribe by name: there is no wildcard `*`"));
    }
    if !name.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(invalid("a resource name must be visible ASCII characters"));
    }
    Ok(())
}

fn invalid(message: impl Into<String>) -> Status {
    Status::invalid_argument(message)
}

#[cfg(test)]
mod tests;
