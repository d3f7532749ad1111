//! Assembles pushed or locally compiled resources into the snapshot that workers enforce.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::Arc,
    time::Instant,
};

use bytes::Bytes;
use merlon_api::MESH_NAME;
use merlon_certs::{RootsError, TrustRoots, provider};
use merlon_config::{
    name::{ServiceName, SpiffeId},
    snapshot::{
        AddressState, CertificateState, Destination, InboundService, MeshState, ResourceKey,
        ResourceKind, SecretState, TrustBundle, Version, WorkloadState,
    },
};
use merlon_policy::{limit::LimitRegistry, problem::PolicyProblem};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use serde::de::DeserializeOwned;

use crate::state::{
    gateway_ports::Port,
    secrets::{self, Secrets},
    snapshot::{Certificates, CompiledService, Snapshot},
};

/// A resource: its bytes, and their hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HeldResource {
    pub(crate) version: Version,
    pub(crate) json: Bytes,
}

/// All resources of a state, without the manifest.
pub(crate) type Resources = BTreeMap<ResourceKey, HeldResource>;

/// Assembles snapshots. Unchanged parts of the previous snapshot are reused, not compiled again, and limits keep their
/// counters.
#[derive(Debug)]
pub(crate) struct Assembler {
    identity: SpiffeId,
    limits: LimitRegistry,
}

/// Why resources are not a valid state. The previous one stays in force.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AssembleError {
    #[error("the state contains no {0}")]
    Missing(&'static str),
    #[error("the state contains more than one {0}")]
    Several(&'static str),
    #[error("{key} cannot be read: {source}")]
    Content {
        key: ResourceKey,
        #[source]
        source: serde_json::Error,
    },
    #[error("{0} contains a resource with another name")]
    Name(ResourceKey),
    #[error("the state is for `{found}`, but this proxy runs as `{own}`")]
    Identity {
        own: Box<SpiffeId>,
        found: Box<SpiffeId>,
    },
    #[error("the certificate {0} cannot be used: {1}")]
    Certificate(String, String),
    #[error("the trust bundle is invalid: {0}")]
    Roots(#[from] RootsError),
    #[error("{}", list(.0))]
    Policy(Vec<PolicyProblem>),
}

fn list(problems: &[PolicyProblem]) -> String {
    let lines = problems
        .iter()
        .map(|problem| match problem.origin.as_str() {
            "" => problem.to_string(),
            origin => format!("{origin}: {problem}"),
        });
    lines.collect::<Vec<_>>().join("\n")
}

impl Assembler {
    /// An assembler for the proxy with this identity.
    pub(crate) fn new(identity: SpiffeId) -> Self {
        Self {
            identity,
            limits: LimitRegistry::new(Instant::now()),
        }
    }

    /// Reads, validates and compiles. Expensive: do not call it on a worker thread.
    ///
    /// # Errors
    /// The first problem; for policies all problems.
    pub(crate) fn assemble(
        &self,
        version: Version,
        resources: &Resources,
        before: Option<&Snapshot>,
    ) -> Result<Snapshot, AssembleError> {
        let mesh = self.mesh(resources, before)?;
        let workload: WorkloadState = only(resources, ResourceKind::Workload, "workload")?.1;
        if workload.identity != self.identity {
            return Err(AssembleError::Identity {
                own: Box::new(self.identity.clone()),
                found: Box::new(workload.identity),
            });
        }
        let bundles = all(resources, ResourceKind::TrustBundle)
            .map(|(key, held)| {
                let bundle: TrustBundle = read(key, held)?;
                named(key, bundle.trust_domain.as_str() == key.name)?;
                Ok(bundle)
            })
            .collect::<Result<Vec<_>, AssembleError>>()?;
        TrustRoots::from_bundles(&bundles)?;
        let secrets = secrets(resources, &workload, before)?;
        Ok(Snapshot {
            services: self.services(resources, &mesh, before)?,
            destinations: destinations(resources, before)?,
            addresses: addresses(resources)?,
            ports: workload.gateway.as_ref().map(Port::all).unwrap_or_default(),
            certificates: certificates(resources)?,
            credentials: secrets::credentials(&workload.secrets, &secrets),
            secrets,
            version,
            mesh,
            workload,
            bundles,
            resources: resources
                .iter()
                .map(|(key, held)| (key.clone(), held.version.clone()))
                .collect(),
        })
    }

    fn mesh(
        &self,
        resources: &Resources,
        before: Option<&Snapshot>,
    ) -> Result<Arc<MeshState>, AssembleError> {
        let (key, mesh): (_, MeshState) = only(resources, ResourceKind::Mesh, "mesh")?;
        named(key, key.name == MESH_NAME)?;
        Ok(match before {
            // Reuse the value, so that services of the same version are not compiled again.
            Some(before) if *before.mesh == mesh => Arc::clone(&before.mesh),
            _ => Arc::new(mesh),
        })
    }

    fn services(
        &self,
        resources: &Resources,
        mesh: &Arc<MeshState>,
        before: Option<&Snapshot>,
    ) -> Result<HashMap<ServiceName, Arc<CompiledService>>, AssembleError> {
        let mut services = HashMap::new();
        let mut problems = Vec::new();
        for (key, held) in all(resources, ResourceKind::Service) {
            let state: InboundService = read(key, held)?;
            named(key, state.name.to_string() == key.name)?;
            let name = state.name.clone();
            let same = before
                .and_then(|before| before.services.get(&name))
                .filter(|old| old.version == held.version && Arc::ptr_eq(&old.mesh, mesh));
            if let Some(same) = same {
                services.insert(name, Arc::clone(same));
                continue;
            }
            match CompiledService::compile(state, mesh, held.version.clone(), &self.limits) {
                Ok(compiled) => {
                    services.insert(name, Arc::new(compiled));
                }
                Err(found) => problems.extend(found),
            }
        }
        if problems.is_empty() {
            Ok(services)
        } else {
            Err(AssembleError::Policy(problems))
        }
    }
}

fn destinations(
    resources: &Resources,
    before: Option<&Snapshot>,
) -> Result<HashMap<ServiceName, Arc<Destination>>, AssembleError> {
    let mut destinations = HashMap::new();
    for (key, held) in all(resources, ResourceKind::Destination) {
        let new: Destination = read(key, held)?;
        named(key, new.name.to_string() == key.name)?;
        let old = before.and_then(|before| before.destinations.get(&new.name));
        let destination = match old {
            // Reuse the value, so that connection pools that are keyed by it stay.
            Some(old) if **old == new => Arc::clone(old),
            _ => Arc::new(new),
        };
        destinations.insert(destination.name.clone(), destination);
    }
    Ok(destinations)
}

fn addresses(resources: &Resources) -> Result<HashMap<SocketAddr, AddressState>, AssembleError> {
    let addresses = all(resources, ResourceKind::Address).map(|(key, held)| {
        let address = key.name.parse();
        let address = address.map_err(|_| AssembleError::Name(key.clone()))?;
        Ok((address, read(key, held)?))
    });
    addresses.collect()
}

fn secrets(
    resources: &Resources,
    workload: &WorkloadState,
    before: Option<&Snapshot>,
) -> Result<Secrets, AssembleError> {
    let mut pushed = Secrets::new();
    for (key, held) in all(resources, ResourceKind::Secret) {
        let state: SecretState = read(key, held)?;
        named(key, state.name.to_string() == key.name)?;
        pushed.insert(state.name.clone(), Arc::new(state));
    }
    let before = before.map(|before| (&*before.workload.secrets, &before.secrets));
    Ok(secrets::settle(&workload.secrets, pushed, before))
}

fn certificates(resources: &Resources) -> Result<Certificates, AssembleError> {
    let certificates = all(resources, ResourceKind::Certificate).map(|(key, held)| {
        let state: CertificateState = read(key, held)?;
        named(key, state.name.to_string() == key.name)?;
        let pair =
            pushed(&state).map_err(|why| AssembleError::Certificate(key.name.clone(), why))?;
        Ok((state.name, pair))
    });
    certificates.collect()
}

fn all(
    resources: &Resources,
    kind: ResourceKind,
) -> impl Iterator<Item = (&ResourceKey, &HeldResource)> {
    resources.iter().filter(move |(key, _)| key.kind == kind)
}

fn only<'a, T: DeserializeOwned>(
    resources: &'a Resources,
    kind: ResourceKind,
    what: &'static str,
) -> Result<(&'a ResourceKey, T), AssembleError> {
    let mut found = all(resources, kind);
    let (key, held) = found.next().ok_or(AssembleError::Missing(what))?;
    if found.next().is_some() {
        return Err(AssembleError::Several(what));
    }
    Ok((key, read(key, held)?))
}

fn read<T: DeserializeOwned>(key: &ResourceKey, held: &HeldResource) -> Result<T, AssembleError> {
    serde_json::from_slice(&held.json).map_err(|source| AssembleError::Content {
        key: key.clone(),
        source,
    })
}

fn named(key: &ResourceKey, is: bool) -> Result<(), AssembleError> {
    if is {
        Ok(())
    } else {
        Err(AssembleError::Name(key.clone()))
    }
}

/// Parses a pushed certificate.
///
/// # Errors
/// The chain or the key is invalid, or the key does not match the certificate.
pub(crate) fn pushed(state: &CertificateState) -> Result<Arc<CertifiedKey>, String> {
    let chain = CertificateDer::pem_slice_iter(state.chain.as_bytes()).collect::<Result<_, _>>();
    let chain = chain.map_err(|error| format!("invalid chain: {error}"))?;
    let key = PrivateKeyDer::from_pem_slice(state.key.as_bytes());
    let key = key.map_err(|error| format!("invalid key: {error}"))?;
    let pair = CertifiedKey::from_der(chain, key, provider());
    pair.map(Arc::new).map_err(|error| error.to_string())
}
