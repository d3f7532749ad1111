//! The two views of a Service: `InboundService` for its own proxies, and `Destination` for its clients' proxies.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use merlon_config::{
    name::{ServiceName, TrustDomain},
    resource::{Resource, ServiceSpec},
    snapshot::{Destination, DestinationPort, Endpoint, INBOUND_PORT, InboundPort, InboundService},
};

use crate::{
    attach::{Attachment, Attachments, Target},
    declared::{Documents, Names},
    select::{Selectable, Workloads},
};

/// The view of the proxies of the service's own workloads, which enforce it.
pub(crate) fn inbound(
    name: &ServiceName,
    spec: &ServiceSpec,
    attachments: &Attachments<'_>,
    documents: &Documents,
    names: &Names,
) -> InboundService {
    let ports = spec.ports.iter().map(|port| InboundPort {
        port: port.port,
        target_port: port.target_port.unwrap_or(port.port),
        protocol: port.app_protocol,
    });
    let policies = attachments.applying_to(Target::Service, name);
    InboundService {
        ports: ports.collect(),
        groups: sorted(&spec.groups),
        ..enforced(name, &policies, documents, names)
    }
}

/// The policies that are enforced for a Service or a Gateway.
pub(crate) fn enforced(
    name: &ServiceName,
    policies: &[&Resource],
    documents: &Documents,
    names: &Names,
) -> InboundService {
    let attached = Attachment::of(policies);
    InboundService {
        name: name.clone(),
        ports: Vec::new(),
        groups: Vec::new(),
        workload_groups: names.groups(documents, &attached.policies),
        declared_elsewhere: names.declared_elsewhere(documents, name, &attached),
        policies: attached.policies,
        authentication: attached.authentication,
        limits: attached.limits,
        validation: attached.validation,
    }
}

/// The view of the proxies of the service's clients.
pub(crate) fn destination(
    name: &ServiceName,
    spec: &ServiceSpec,
    workloads: &Workloads<'_>,
    serving: &[usize],
    trust_domain: &TrustDomain,
) -> Destination {
    let ports = spec.ports.iter().map(|port| DestinationPort {
        port: port.port,
        protocol: port.app_protocol,
    });
    let serving = serving.iter().filter_map(|index| workloads.all.get(*index));
    let mut endpoints: Vec<_> = serving
        .filter_map(|workload| endpoint(spec, workload, trust_domain))
        .collect();
    endpoints.sort_by(|a, b| (a.address, &a.identity).cmp(&(b.address, &b.identity)));
    endpoints.dedup();
    Destination {
        name: name.clone(),
        ports: ports.collect(),
        endpoints,
    }
}

/// The endpoint of a workload, unless the workload is known not to be ready.
fn endpoint(
    service: &ServiceSpec,
    workload: &Selectable<'_>,
    trust_domain: &TrustDomain,
) -> Option<Endpoint> {
    let identity = Some(workload.identity(trust_domain));
    if let Some(address) = workload.spec.mesh_address {
        return Some(Endpoint {
            address,
            identity,
            ports: BTreeMap::new(),
        });
    }
    // The first address represents all of them.
    let address = workload.spec.addresses.first()?;
    if let Some(ready) = &service.endpoints {
        let mut own = workload.spec.addresses.iter();
        own.find(|own| ready.contains(own))?;
    }
    let ports = service.ports.iter();
    let ports = ports.map(|port| (port.port, port.target_port.unwrap_or(port.port)));
    Some(Endpoint {
        address: SocketAddr::new(*address, INBOUND_PORT),
        identity,
        ports: ports.collect(),
    })
}

fn sorted(texts: &[String]) -> Vec<String> {
    let set: BTreeSet<_> = texts.iter().cloned().collect();
    set.into_iter().collect()
}
