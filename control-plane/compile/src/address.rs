//! The meaning of an address: a Service, a workload, or outside the mesh.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
};

use merlon_config::{
    name::ServiceName,
    resource::{Resource, Spec},
    snapshot::AddressState,
};

use crate::{gateway::name_of, select::Workloads};

/// All addresses of the mesh.
#[derive(Debug, Default)]
pub(crate) struct Addresses {
    services: HashMap<IpAddr, (ServiceName, Vec<u16>)>,
    workloads: HashMap<IpAddr, WorkloadAddress>,
}

/// One address of a workload.
#[derive(Debug)]
struct WorkloadAddress {
    /// The workload's first address, which its endpoints have.
    workload: IpAddr,
    /// Services with their ports, by the program's port. Connections belong to the first one by name.
    served: HashMap<u16, BTreeSet<(ServiceName, u16)>>,
}

impl Addresses {
    pub(crate) fn new(resources: &[Resource], workloads: &Workloads<'_>) -> Self {
        let mut all = Self::default();
        for workload in &workloads.all {
            for address in &workload.spec.addresses {
                let workload = *workload.spec.addresses.first().unwrap_or(address);
                let served = HashMap::new();
                all.workloads
                    .insert(*address, WorkloadAddress { workload, served });
            }
        }
        for resource in resources {
            let Spec::Service(spec) = &resource.spec else {
                continue;
            };
            let name = name_of(resource);
            let is_meshed = |address: &IpAddr| all.workloads.contains_key(address);
            let ready = spec.endpoints.as_deref().unwrap_or_default();
            // A Service without endpoints still belongs to the mesh: an address is external only if that is known.
            if ready.is_empty() || ready.iter().any(is_meshed) {
                let ports: Vec<u16> = spec.ports.iter().map(|port| port.port).collect();
                for address in &spec.addresses {
                    all.services.insert(*address, (name.clone(), ports.clone()));
                }
            }
            for index in workloads.selected(&resource.namespace, spec) {
                let Some(workload) = workloads.all.get(index) else {
                    continue;
                };
                for address in &workload.spec.addresses {
                    let Some(WorkloadAddress { served, .. }) = all.workloads.get_mut(address)
                    else {
                        continue;
                    };
                    for port in &spec.ports {
                        let service = (name.clone(), port.port);
                        let target = port.target_port.unwrap_or(port.port);
                        served.entry(target).or_default().insert(service);
                    }
                }
            }
        }
        all
    }

    pub(crate) fn find(&self, address: SocketAddr) -> AddressState {
        let (ip, port) = (address.ip().to_canonical(), address.port());
        if let Some((service, ports)) = self.services.get(&ip) {
            return match ports.contains(&port) {
                true => AddressState::Service {
                    service: service.clone(),
                    port,
                    workload: None,
                    also: Vec::new(),
                },
                false => AddressState::Closed,
            };
        }
        let Some(WorkloadAddress { workload, served }) = self.workloads.get(&ip) else {
            return AddressState::Outside;
        };
        let mut all = served.get(&port).into_iter().flatten();
        let Some((service, port)) = all.next() else {
            return AddressState::Closed;
        };
        let mut also: Vec<_> = all.map(|(other, _)| other.clone()).collect();
        also.dedup();
        also.retain(|other| other != service);
        AddressState::Service {
            service: service.clone(),
            port: *port,
            workload: Some(*workload),
            also,
        }
    }
}
