//! The service port that a request is for.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    rc::Rc,
    sync::Arc,
};

use http::HeaderMap;
use merlon_config::{name::ServiceName, resource::AppProtocol};
use merlon_policy::{
    decision::Decision,
    facts::{Headers, RequestFacts},
    principal::{PeerFacts, Principal},
    service::Candidates,
};

use crate::{
    protocol::peer_header::{Claim, Proto},
    state::snapshot::{CompiledService, Snapshot},
};

/// A service's port as one peer uses it: found once per connection and snapshot.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) service: Arc<CompiledService>,
    /// The Service's port; 0 for a gateway.
    pub(crate) port: u16,
    pub(crate) protocol: AppProtocol,
    /// The address of the program; port 0 for a gateway.
    pub(crate) program: SocketAddr,
    pub(crate) peer: PeerFacts,
    pub(crate) candidates: Candidates,
    /// The other services on the same program port: their `forbid`s apply too.
    pub(crate) others: Vec<SharedPortService>,
    /// For the log.
    pub(crate) name: Rc<str>,
}

/// Another service on the same program port.
#[derive(Debug)]
pub(crate) struct SharedPortService {
    pub(crate) service: Arc<CompiledService>,
    pub(crate) peer: PeerFacts,
    pub(crate) candidates: Candidates,
}

impl Target {
    /// The service port that a caller claims, if it belongs to this proxy's workload.
    pub(crate) fn claimed(
        snapshot: &Snapshot,
        service: &ServiceName,
        port: u16,
        peer: &Principal,
    ) -> Option<Self> {
        // The map may contain other services that the manifest names; only those of the own workload are served.
        let own = snapshot.workload.services.contains(service);
        let service = snapshot.services.get(service).filter(|_| own)?;
        let inbound = service
            .state
            .ports
            .iter()
            .find(|inbound| inbound.port == port)?;
        let others = snapshot
            .services_on(inbound.target_port)
            .filter(|other| !Arc::ptr_eq(other, service));
        Some(Self {
            port,
            protocol: inbound.protocol,
            program: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), inbound.target_port),
            others: others
                .map(|other| SharedPortService::of(other, peer))
                .collect(),
            name: format!("{}:{port}", service.state.name).into(),
            ..Self::without_port(service, peer)
        })
    }

    /// The service on a port of the program. Of several it is the first by name; the `forbid`s of all of them apply.
    pub(crate) fn on_port(
        snapshot: &Snapshot,
        program_port: u16,
        peer: &Principal,
    ) -> Option<Self> {
        let service = snapshot.services_on(program_port).next()?;
        let mut ports = service.state.ports.iter();
        let port = ports.find(|own| own.target_port == program_port)?.port;
        Self::claimed(snapshot, &service.state.name, port, peer)
    }

    /// A gateway's own policies.
    pub(crate) fn gateway(snapshot: &Snapshot, peer: &Principal) -> Option<Self> {
        let name = &snapshot.workload.gateway.as_ref()?.name;
        Some(Self::without_port(snapshot.services.get(name)?, peer))
    }

    /// For a plain-text listener, where no proxy sends a claim: the only port of the workload, or the one that the
    /// host names.
    pub(crate) fn inferred(snapshot: &Snapshot, host: &str, peer: &Principal) -> Option<Self> {
        let mut ports = snapshot.workload.services.iter().flat_map(|name| {
            let ports = snapshot
                .services
                .get(name)
                .into_iter()
                .flat_map(|service| &service.state.ports);
            ports.map(move |port| (name, port.port))
        });
        let (first, second) = (ports.next()?, ports.next());
        let (name, port) = if second.is_none() {
            first
        } else {
            let (host, wanted) = crate::protocol::host::split_port(host)?;
            let own = &snapshot.identity().workload().namespace;
            let name = crate::protocol::host::mesh_name(host, own)?;
            let mut all = snapshot.workload.services.iter();
            let name = all.find(|own| **own == name)?;
            let service = snapshot.services.get(name)?;
            let fits = |port: u16| service.state.ports.iter().any(|own| own.port == port);
            (
                name,
                wanted
                    .or_else(|| service.state.ports.first().map(|port| port.port))
                    .filter(|port| fits(*port))?,
            )
        };
        Self::claimed(snapshot, name, port, peer)
    }

    /// The headers that the policies for this target read. May contain duplicates.
    pub(crate) fn header_names(&self) -> impl Iterator<Item = &str> {
        let others = self.others.iter();
        let others = others.flat_map(|other| other.service.policy.header_names());
        self.service.policy.header_names().chain(others)
    }

    /// Whether any policy for this target reads this header.
    pub(crate) fn reads(&self, header: &str) -> bool {
        self.header_names().any(|own| own == header)
    }

    /// Evaluates the policies of the service, and the `forbid`s of the others on the same program port.
    pub(crate) fn decide(&self, facts: &RequestFacts<'_>) -> Decision {
        let policy = &self.service.policy;
        let decision = policy.decide(&self.candidates, &self.peer, facts);
        if matches!(decision, Decision::Deny(_)) {
            return decision;
        }
        let mut others = self.others.iter();
        let forbidden = others.find_map(|other| {
            let policy = &other.service.policy;
            policy.forbids(&other.candidates, &other.peer, facts)
        });
        forbidden.map_or(decision, Decision::Deny)
    }

    fn without_port(service: &Arc<CompiledService>, peer: &Principal) -> Self {
        let other = SharedPortService::of(service, peer);
        Self {
            name: service.state.name.to_string().into(),
            service: other.service,
            port: 0,
            protocol: AppProtocol::Http,
            program: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0),
            peer: other.peer,
            candidates: other.candidates,
            others: Vec::new(),
        }
    }
}

impl SharedPortService {
    fn of(service: &Arc<CompiledService>, peer: &Principal) -> Self {
        let peer = service.policy.peer(peer);
        Self {
            service: Arc::clone(service),
            candidates: service.policy.candidates(&peer),
            peer,
        }
    }
}

/// The targets of claims that were already resolved on a connection.
#[derive(Debug, Default)]
pub(crate) struct TargetCache {
    generation: u64,
    found: Vec<(http::HeaderValue, Proto, Rc<Target>)>,
}

/// Maximum entries. A workload has fewer ports, so more claims than this are not regular traffic.
pub(crate) const MAX_ENTRIES: usize = 32;

impl TargetCache {
    /// The target of a claim, and its protocol.
    pub(crate) fn find(
        &mut self,
        text: &http::HeaderValue,
        snapshot: &Snapshot,
        generation: u64,
        peer: &Principal,
    ) -> Option<(Rc<Target>, Proto)> {
        if self.generation != generation {
            self.found.clear();
            self.generation = generation;
        }
        if let Some((_, proto, target)) = self.found.iter().find(|(known, ..)| known == text) {
            return Some((Rc::clone(target), *proto));
        }
        // Opaque TCP comes over a tunnel; an HTTP request must not claim it.
        let claim = Claim::parse(text.as_bytes()).filter(|claim| claim.proto != Proto::Tcp)?;
        let target = Rc::new(Target::claimed(snapshot, &claim.service, claim.port, peer)?);
        if self.found.len() >= MAX_ENTRIES {
            self.found.clear();
        }
        self.found
            .push((text.clone(), claim.proto, Rc::clone(&target)));
        Some((target, claim.proto))
    }
}

/// A header map as policies read it.
pub(crate) struct PolicyHeaders<'m>(pub(crate) &'m HeaderMap);

impl Headers for PolicyHeaders<'_> {
    fn each<'a>(&'a self, name: &str, each: &mut dyn FnMut(&'a [u8])) {
        self.0
            .get_all(name)
            .iter()
            .for_each(|value| each(value.as_bytes()));
    }
}
