//! The compiled mesh, from which the state of each proxy is taken.

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

/// The compiled resources: the state of each proxy, and the two views of each service.
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

/// Additional subscriptions of a proxy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Services, by name.
    pub services: BTreeSet<ServiceName>,
    /// Addresses to resolve.
    pub addresses: BTreeSet<SocketAddr>,
}

/// The proxy of a Workload or a Gateway.
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

/// A secret that is granted to a workload.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Granted {
    /// The `SecretGrant`.
    pub name: ServiceName,
    /// The secret's path below the grant's namespace. A different path is a different grant.
    pub path: String,
}

impl Proxy {
    /// The Workload or the Gateway, as `namespace/name`.
    pub fn name(&self) -> &ServiceName {
        &self.name
    }

    /// The identity that it runs as.
    pub fn identity(&self) -> &SpiffeId {
        &self.identity
    }

    /// Whether it is a gateway and not a sidecar.
    pub fn is_gateway(&self) -> bool {
        self.gateway
    }

    /// The services whose requests it receives.
    pub fn services(&self) -> &[ServiceName] {
        &self.services
    }

    /// Destinations that are always part of its state: those of its listeners or routes. They may not exist.
    pub fn destinations(&self) -> &BTreeSet<ServiceName> {
        &self.destinations
    }

    /// The secrets that are granted to it.
    pub fn secrets(&self) -> &[Granted] {
        &self.secrets
    }

    /// Secrets with the certificates of a gateway's listeners.
    pub fn certificates(&self) -> &BTreeSet<ServiceName> {
        &self.certificates
    }
}

/// Why a proxy has no state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProxyUnknown {
    /// No resource has this identity.
    #[error("no Workload and no Gateway runs as `{0}`")]
    Identity(SpiffeId),
    /// No resource with this name has this identity.
    #[error("no Workload named `{name}` runs as `{identity}`: known are {known}")]
    Workload {
        /// The authenticated identity.
        identity: SpiffeId,
        /// The name that the proxy sent, truncated.
        name: String,
        /// The existing names.
        known: String,
    },
    /// Several resources with different states have this identity, and the proxy named none of them.
    #[error(
        "several workloads run as `{identity}` ({known}): the proxy must name its own, for example `--workload {first}`"
    )]
    Several {
        /// The authenticated identity.
        identity: SpiffeId,
        /// The existing names.
        known: String,
        /// The first of them.
        first: String,
    },
}

impl Mesh {
    /// The `MeshConfig`.
    pub fn config(&self) -> &MeshConfigSpec {
        &self.config
    }

    /// The state that applies to the whole mesh.
    pub fn state(&self) -> &MeshState {
        &self.state
    }

    /// The same state as a resource to push.
    pub fn mesh_resource(&self) -> &Arc<StateResource> {
        &self.mesh
    }

    /// Whether a Workload or a Gateway runs as this identity. No other identity gets a certificate.
    pub fn knows(&self, identity: &SpiffeId) -> bool {
        self.proxies.contains_key(identity)
    }

    /// All expected proxies, by identity.
    pub fn proxies(&self) -> impl Iterator<Item = &Arc<Proxy>> {
        self.proxies.values().flatten()
    }

    /// A Service or a Gateway, as its own proxies enforce it.
    pub fn service(&self, name: &ServiceName) -> Option<&Arc<StateResource>> {
        self.services.get(name)
    }

    /// A Service, as its clients' proxies use it.
    pub fn destination(&self, name: &ServiceName) -> Option<&Arc<StateResource>> {
        self.destinations.get(name)
    }

    /// The names of all destinations.
    pub fn destination_names(&self) -> impl Iterator<Item = &ServiceName> {
        self.destinations.keys()
    }

    /// The proxy of an authenticated identity. `workload` is the name that the proxy sent, `name` or `namespace/name`;
    /// it only selects among the proxies of this identity.
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

    /// The meaning of an address and port.
    pub fn address(&self, address: SocketAddr) -> AddressState {
        self.addresses.find(address)
    }

    /// The state of one proxy: the mesh, its workload, the services that it enforces, and its own and the `wanted`
    /// destinations. A service that does not exist is left out; an address without a workload is included, too. The
    /// caller adds trust bundle, certificates and secrets.
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
        for (address, resolved) in &found {
            if let AddressState::Service { service, .. } = resolved {
                called.insert(service);
            }
            let name = address.to_string();
            state.insert(Arc::new(StateResource::new(
                ResourceKind::Address,
                name,
                resolved,
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
