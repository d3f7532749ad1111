//! Converts pods, Services and endpoints to Merlon's Workloads and Services.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use k8s_openapi::{
    api::{
        core::v1::{Container, Pod, Service, ServicePort as ClusterPort},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::ResourceExt as _;
use merlon_config::{
    name::{Namespace, ResourceName},
    resource::{AppProtocol, Resource, ServicePort, ServiceSpec, Spec, WorkloadSpec},
};

use super::gateway;
use crate::cluster::{endpoints::is_ready, names, pods::meshed, watch::Cluster};

/// All Workloads and Services, in an order that does not depend on the cluster.
pub(crate) fn found(cluster: &Cluster) -> Vec<Resource> {
    let (pods, slices) = (cluster.pods.state(), cluster.slices.state());
    convert(pods, &cluster.services.state(), &slices)
}

/// As [`found`], from these objects.
pub(crate) fn convert(
    mut pods: Vec<Arc<Pod>>,
    services: &[Arc<Service>],
    slices: &[Arc<EndpointSlice>],
) -> Vec<Resource> {
    // An address may be reused while its old pod is still known. It belongs to the newer pod.
    pods.sort_by_key(|pod| {
        let going = pod.metadata.deletion_timestamp.is_some();
        (going, Reverse(pod.creation_timestamp().map(|time| time.0)))
    });
    let mut taken = HashSet::new();
    // A gateway's pod is not a Workload: its Gateway configures it, and its clients are outside the mesh.
    let workloads = pods.iter().filter(|pod| !is_of_a_gateway(pod));
    let workloads = workloads.filter_map(|pod| {
        let mut found = workload(pod)?;
        if let Spec::Workload(spec) = &mut found.spec {
            spec.addresses.retain(|address| taken.insert(*address));
        }
        Some(found)
    });
    let mut all: Vec<Resource> = workloads.collect();
    let ready = ready(slices);
    let services = services
        .iter()
        .filter(|service| !gateway::is_of_a_gateway(service));
    all.extend(services.filter_map(|found| {
        let name = (found.namespace()?, found.name_any());
        service(found, pods.iter().map(AsRef::as_ref), ready.get(&name))
    }));
    all.sort_by(|a, b| a.origin.cmp(&b.origin));
    all
}

fn is_of_a_gateway(pod: &Pod) -> bool {
    pod.labels().contains_key(gateway::GATEWAY_LABEL)
}

type Ready = HashMap<(String, String), ServiceEndpoints>;

/// The endpoints of a Service.
#[derive(Debug, Default)]
struct ServiceEndpoints {
    ready: BTreeSet<IpAddr>,
    /// Used if none is ready: terminating endpoints that still serve, as in kube-proxy.
    ending: BTreeSet<IpAddr>,
}

/// The endpoints by namespace and name of the Service.
fn ready(slices: &[Arc<EndpointSlice>]) -> Ready {
    let mut all = Ready::new();
    for slice in slices {
        let service = slice.labels().get(names::SERVICE_LABEL);
        let (Some(namespace), Some(service)) = (slice.namespace(), service) else {
            continue;
        };
        let found = all.entry((namespace, service.clone())).or_default();
        for endpoint in &slice.endpoints {
            let conditions = endpoint.conditions.clone().unwrap_or_default();
            let known = endpoint.addresses.iter();
            let known = known.filter_map(|address| address.parse::<IpAddr>().ok());
            if is_ready(endpoint) {
                found.ready.extend(known);
            } else if conditions.serving == Some(true) && conditions.terminating == Some(true) {
                found.ending.extend(known);
            }
        }
    }
    all
}

/// The ready endpoints. If there are none, terminating endpoints and those whose node may be lost.
fn endpoints(found: &ServiceEndpoints, pods: &[&Pod]) -> Vec<IpAddr> {
    if !found.ready.is_empty() {
        return found.ready.iter().copied().collect();
    }
    let healthy = pods.iter().filter(|pod| is_healthy(pod));
    let healthy: BTreeSet<IpAddr> = healthy.flat_map(|pod| addresses(pod)).collect();
    healthy.union(&found.ending).copied().collect()
}

/// Empty for a pod with `hostNetwork`, because other pods share the node's address.
fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let host = pod.spec.as_ref().and_then(|spec| spec.host_network);
    let Some(status) = pod.status.as_ref().filter(|_| host != Some(true)) else {
        return Vec::new();
    };
    let all = status
        .pod_ips
        .iter()
        .flatten()
        .map(|found| found.ip.as_str());
    let all: BTreeSet<IpAddr> = all
        .chain(status.pod_ip.as_deref())
        .filter_map(|address| address.parse().ok())
        .collect();
    all.into_iter().collect()
}

fn place(object: &impl kube::ResourceExt) -> Option<(Namespace, ResourceName)> {
    let namespace = object.namespace()?.parse().ok()?;
    Some((namespace, object.name_any().parse().ok()?))
}

/// `None`: the pod has no proxy or has ended.
fn workload(pod: &Pod) -> Option<Resource> {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    if !meshed(pod) || matches!(phase, Some("Succeeded" | "Failed")) {
        return None;
    }
    let (namespace, name) = place(pod)?;
    let account = pod.spec.as_ref()?.service_account_name.as_deref();
    let service_account = account.unwrap_or("default").parse().ok()?;
    Some(Resource {
        origin: format!("Pod/{namespace}/{name}"),
        labels: pod.labels().clone(),
        created: None,
        namespace,
        name,
        spec: Spec::Workload(WorkloadSpec {
            service_account,
            mesh_address: None,
            addresses: addresses(pod),
            groups: Vec::new(),
            outbound: Vec::new(),
        }),
    })
}

/// `None`: the Service has no pods by selector, or only UDP ports.
fn service<'a>(
    service: &Service,
    pods: impl Iterator<Item = &'a Pod>,
    ready: Option<&ServiceEndpoints>,
) -> Option<Resource> {
    let (namespace, name) = place(service)?;
    let spec = service.spec.as_ref()?;
    let selector: BTreeMap<String, String> = spec.selector.clone().unwrap_or_default();
    if selector.is_empty() || spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    let own: Vec<&Pod> = pods
        .filter(|pod| pod.metadata.namespace.as_deref() == Some(namespace.as_str()))
        .filter(|pod| selector.iter().all(|(k, v)| pod.labels().get(k) == Some(v)))
        .collect();
    let ports = spec.ports.iter().flatten();
    let ports: Vec<ServicePort> = ports.filter_map(|port| port_of(port, &own)).collect();
    if ports.is_empty() {
        return None;
    }
    Some(Resource {
        origin: format!("Service/{namespace}/{name}"),
        labels: service.labels().clone(),
        created: None,
        namespace,
        name,
        spec: Spec::Service(ServiceSpec {
            selector,
            ports,
            addresses: spec
                .cluster_ips
                .iter()
                .flatten()
                .filter_map(|address| address.parse().ok())
                .collect(),
            // All selected pods, until the cluster publishes endpoints.
            endpoints: ready.map(|ready| endpoints(ready, &own)),
            groups: Vec::new(),
        }),
    })
}

/// Whether a pod's containers pass their probes. If such a pod is not ready, its node is considered lost. After a
/// minute without the API server that applies to every node, until each has reported again.
fn is_healthy(pod: &Pod) -> bool {
    let gates = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.readiness_gates.as_ref());
    let conditions = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    pod.metadata.deletion_timestamp.is_none()
        && gates.is_none_or(Vec::is_empty)
        && conditions.any(|known| known.type_ == "ContainersReady" && known.status == "True")
}

fn port_of(port: &ClusterPort, pods: &[&Pod]) -> Option<ServicePort> {
    if port.protocol.as_deref().is_some_and(|known| known != "TCP") {
        return None;
    }
    let number = u16::try_from(port.port).ok()?;
    let target_port = match &port.target_port {
        None => None,
        Some(IntOrString::Int(target)) => u16::try_from(*target).ok().filter(|port| *port > 0),
        Some(IntOrString::String(name)) => Some(
            pods.iter()
                .find_map(|pod| named_port(pod, name))
                .unwrap_or(number),
        ),
    };
    Some(ServicePort {
        name: port.name.as_deref().and_then(|name| name.parse().ok()),
        port: number,
        target_port,
        app_protocol: protocol(
            port.app_protocol.as_deref(),
            port.name.as_deref(),
            [Some(number), target_port],
        ),
    })
}

fn named_port(pod: &Pod, name: &str) -> Option<u16> {
    let spec = pod.spec.as_ref()?;
    let containers = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten());
    let mut ports = containers.flat_map(|container: &Container| container.ports.iter().flatten());
    let port = ports.find(|port| port.name.as_deref() == Some(name))?;
    u16::try_from(port.container_port).ok()
}

/// By `appProtocol`, then by the port's name, then by its number. The default is HTTP.
fn protocol(declared: Option<&str>, name: Option<&str>, numbers: [Option<u16>; 2]) -> AppProtocol {
    let words = [
        declared.map(|declared| declared.rsplit('/').next().unwrap_or(declared)),
        name.map(|name| name.split('-').next().unwrap_or(name)),
    ];
    let known =
        words
            .into_iter()
            .flatten()
            .find_map(|word| match word.to_ascii_lowercase().as_str() {
                "http" | "http1" | "ws" => Some(AppProtocol::Http),
                "grpc" => Some(AppProtocol::Grpc),
                "h2c" | "http2" => Some(AppProtocol::H2c),
                "tcp" | "tls" | "https" | "wss" | "redis" | "postgres" | "postgresql" | "mysql"
                | "mongo" | "mongodb" | "amqp" | "kafka" | "nats" | "smtp" | "ldap" => {
                    Some(AppProtocol::Tcp)
                }
                _ => None,
            });
    let is_not_http = || {
        let mut numbers = numbers.into_iter().flatten();
        numbers.any(|number| NOT_HTTP.contains(&number))
    };
    known.unwrap_or_else(|| match is_not_http() {
        true => AppProtocol::Tcp,
        false => AppProtocol::Http,
    })
}

/// Ports that are registered with IANA or commonly used for protocols other than HTTP. In some of them the server sends
/// first: SMTP, LDAP, MQTT, SQL Server, Oracle, NFS, MySQL, PostgreSQL, AMQP, Redis, Cassandra, Kafka, Elasticsearch
/// between nodes, memcached, MongoDB, NATS, ZooKeeper.
const NOT_HTTP: [u16; 22] = [
    25, 389, 465, 587, 636, 1433, 1521, 1883, 2049, 2181, 3306, 4222, 5432, 5671, 5672, 6379, 8883,
    9042, 9092, 9300, 11211, 27017,
];

#[cfg(test)]
mod tests;
