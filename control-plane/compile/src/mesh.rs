//! The compiled mesh: every proxy's state can be read off it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use merlon_config::{
    name::{ServiceName, SpiffeId},
    resource::MeshConfigSpec,
    snapshot::{AddressState, MeshState, ResourceKind},
};

use crate::{
    address::Addresses,
    state::{ProxyState, StateResource},
};

/// Everything that the resources mean, compiled: for each proxy its state, and for each service its two views.
#[derive(Debug)]
pub struct Mesh {
    pub(crate) config: MeshConfigSpec,
    pub(crate) state: MeshState,
    pub(crate) mesh: Arc<StateResource>,
    pub(crate) proxies: BTreeMap<SpiffeId, Vec<Arc<Proxy>>>,
    pub(crate) services: BTreeMap<ServiceName, Arc<StateResource>>,
    pub(crate) destinations: BTreeMap<ServiceName, Arc<StateResource>>,
    pub(crate) addresses: Addresses,
}

/// What a proxy asked for of its own accord.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Services, by name.
    pub services: BTreeSet<ServiceName>,
    /// Whatever is at these addresses.
    pub addresses: BTreeSet<SocketAddr>,
}

/// A Workload or a Gateway, as the proxy beside it is told.
#[derive(Debug)]
pub struct Proxy {
    pub(crate) name: ServiceName,
    pub(crate) identity: SpiffeId,
    pub(crate) gateway: bool,
    pub(crate) state: Arc<StateResource>,
    pub(crate) services: Vec<ServiceName>,
    pub(crate) destinations: BTreeSet<ServiceName>,
    pub(crate) certificates: BTreeSet<ServiceName>,
    pub(crate) secrets: Vec<Granted>,
}

/// A secret that is granted to somebody.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Granted {
    /// The `SecretGrant`.
    pub name: ServiceName,
    /// Which secret, below the grant's namespace. Who edits it grants another one.
    pub path: String,
}

impl Proxy {
    /// The Workload or the Gateway, as `namespace/name`.
    pub fn name(&self) -> &ServiceName {
        &self.name
    }

    /// Whom it runs as.
    pub fn identity(&self) -> &SpiffeId {
        &self.identity
    }

    /// Whether it stands at the edge, rather than beside a workload.
    pub fn is_gateway(&self) -> bool {
        self.gateway
    }

    /// Whose requests come in here.
    pub fn services(&self) -> &[ServiceName] {
        &self.services
    }

    /// Destinations that it has without asking: those of its listeners or routes. Not all of them need exist.
    pub fn destinations(&self) -> &BTreeSet<ServiceName> {
        &self.destinations
    }

    /// The secrets that it gets.
    pub fn secrets(&self) -> &[Granted] {
        &self.secrets
    }

    /// Secrets with the certificates of a gateway's listeners, as `namespace/name`.
    pub fn certificates(&self) -> &BTreeSet<ServiceName> {
        &self.certificates
    }
}

/// Why there is no state for a proxy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProxyUnknown {
    /// No resource has this identity.
    #[error("no Workload and no Gateway runs as `{0}`")]
    Identity(SpiffeId),
    /// None of this name has this identity.
    #[error("no Workload named `{name}` runs as `{identity}`: known are {known}")]
    Workload {
        /// The proved identity.
        identity: SpiffeId,
        /// The name that the proxy gave, cut to what can be read.
        name: String,
        /// Those that there are.
        known: String,
    },
    /// There are several, told different things, and the proxy named none.
    #[error(
        "several run as `{identity}` ({known}): the proxy must name its own, as `--workload {first}`"
    )]
    Several {
        /// The proved identity.
        identity: SpiffeId,
        /// Those that there are.
        known: String,
        /// One of them.
        first: String,
    },
}

impl Mesh {
    /// What was written for the whole mesh.
    pub fn config(&self) -> &MeshConfigSpec {
        &self.config
    }

    /// What holds for the whole mesh.
    pub fn state(&self) -> &MeshState {
        &self.state
    }

    /// The same as it is pushed.
    pub fn mesh_resource(&self) -> &Arc<StateResource> {
        &self.mesh
    }

    /// Whether a Workload or a Gateway runs as this identity: nobody else gets a certificate.
    pub fn knows(&self, identity: &SpiffeId) -> bool {
        self.proxies.contains_key(identity)
    }

    /// Every proxy that there should be, by identity.
    pub fn proxies(&self) -> impl Iterator<Item = &Arc<Proxy>> {
        self.proxies.values().flatten()
    }

    /// A Service or a Gateway as it is enforced.
    pub fn service(&self, name: &ServiceName) -> Option<&Arc<StateResource>> {
        self.services.get(name)
    }

    /// A Service as its callers find it.
    pub fn destination(&self, name: &ServiceName) -> Option<&Arc<StateResource>> {
        self.destinations.get(name)
    }

    /// Names of all Services that can be called.
    pub fn destination_names(&self) -> impl Iterator<Item = &ServiceName> {
        self.destinations.keys()
    }

    /// The proxy of a proved identity. `workload` is what the proxy says of itself, `name` or `namespace/name`;
    /// it only ever chooses among those of the identity.
    ///
    /// # Errors
    /// [`ProxyUnknown`] when there is none, or when there are several that differ and `workload` is `None`.
    pub fn proxy(
        &self,
        identity: &SpiffeId,
        workload: Option<&str>,
    ) -> Result<&Arc<Proxy>, ProxyUnknown> {
        let list = self.proxies.get(identity).map_or(&[][..], Vec::as_slice);
        let Some((first, rest)) = list.split_first() else {
            return Err(ProxyUnknown::Identity(identity.clone()));
        };
        let known = || {
            let names: Vec<_> = list
                .iter()
                .take(8)
                .map(|p| format!("`{}`", p.name.name))
                .collect();
            names.join(", ")
        };
        if let Some(name) = workload {
            let name = name.rsplit_once('/').map_or(name, |(_, name)| name);
            let found = list.iter().find(|proxy| proxy.name.name.as_str() == name);
            return found.ok_or_else(|| ProxyUnknown::Workload {
                identity: identity.clone(),
                name: name.chars().take(253).collect(),
                known: known(),
            });
        }
        if rest
            .iter()
            .any(|other| other.state.version() != first.state.version())
        {
            return Err(ProxyUnknown::Several {
                identity: identity.clone(),
                known: known(),
                first: first.name.name.to_string(),
            });
        }
        Ok(first)
    }

    /// What an address and port are.
    pub fn address(&self, address: SocketAddr) -> AddressState {
        self.addresses.find(address)
    }

    /// One proxy's state: the mesh, itself, what it enforces, and the destinations it has or `wanted`.
    /// A service that does not exist is left out; of an address it is said that nobody is there. Trust bundle
    /// and certificates are not in it: whoever knows them adds them.
    pub fn proxy_state(&self, proxy: &Proxy, wanted: &Wanted) -> ProxyState {
        let mut state = ProxyState::default();
        state.insert(Arc::clone(&self.mesh));
        state.insert(Arc::clone(&proxy.state));
        let services = proxy
            .services
            .iter()
            .filter_map(|name| self.services.get(name));
        let mut called: BTreeSet<&ServiceName> =
            proxy.destinations.union(&wanted.services).collect();
        let found = wanted
            .addresses
            .iter()
            .map(|address| (address, self.address(*address)));
        let found: Vec<_> = found.collect();
        for (address, meant) in &found {
            if let AddressState::Service { service, .. } = meant {
                called.insert(service);
            }
            let name = address.to_string();
            state.insert(Arc::new(StateResource::new(
                ResourceKind::Address,
                name,
                meant,
            )));
        }
        let destinations = called.into_iter();
        let destinations = destinations.filter_map(|name| self.destinations.get(name));
        for resource in services.chain(destinations) {
            state.insert(Arc::clone(resource));
        }
        state
    }
}
