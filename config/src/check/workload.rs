use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

use super::checker::Checker;
use crate::{
    name::{ResourceName, ServiceName},
    nearest,
    resource::{OutboundListener, Resource, Spec, WorkloadSpec},
};

impl<'a> Checker<'a, '_> {
    /// Two proxies at one address would be mistaken for each other, and peers would reject both.
    pub(super) fn unique_mesh_addresses(&mut self) {
        let mut first: HashMap<SocketAddr, &Resource> = HashMap::new();
        for resource in &self.checked.resources.list {
            let Spec::Workload(spec) = &resource.spec else {
                continue;
            };
            let Some(address) = spec.mesh_address else {
                continue;
            };
            if let Some(other) = first.get(&address) {
                let message = format!(
                    "the Workload `{}/{}` already has the address `{address}`",
                    other.namespace, other.name
                );
                let hint = format!("it is defined at {}", other.origin);
                self.error(resource, "spec.meshAddress", message).hint(hint);
            } else {
                first.insert(address, resource);
            }
        }
    }

    /// An address belongs to one Workload or one Service.
    pub(super) fn unique_addresses(&mut self) {
        let mut first: HashMap<IpAddr, &Resource> = HashMap::new();
        for resource in &self.checked.resources.list {
            let addresses = match &resource.spec {
                Spec::Workload(spec) => &spec.addresses,
                Spec::Service(spec) => &spec.addresses,
                _ => continue,
            };
            for (index, address) in addresses.iter().enumerate() {
                let Some(other) = first.insert(*address, resource) else {
                    continue;
                };
                let message = format!(
                    "the {} `{}/{}` already has the address `{address}`",
                    other.spec.kind(),
                    other.namespace,
                    other.name
                );
                let hint = format!("it is defined at {}", other.origin);
                self.error(resource, &format!("spec.addresses[{index}]"), message)
                    .hint(hint);
            }
        }
    }

    /// Reports an address that clients cannot connect to.
    pub(super) fn reachable(&mut self, resource: &Resource, field: &str, address: IpAddr) {
        if address.is_unspecified() || address.is_multicast() {
            let message = format!("clients cannot connect to `{address}`");
            self.error(resource, field, message);
        }
    }

    pub(super) fn workload(&mut self, resource: &'a Resource, spec: &'a WorkloadSpec) {
        if let Some(address) = spec.mesh_address {
            if address.ip().is_unspecified() || address.ip().is_multicast() {
                let message = format!("other proxies cannot reach `{}`", address.ip());
                self.error(resource, "spec.meshAddress", message)
                    .hint("use an address of this workload's machine");
            }
            if address.port() == 0 {
                let message = "other proxies cannot reach port 0";
                self.error(resource, "spec.meshAddress", message);
            }
        }
        for (index, address) in spec.addresses.iter().enumerate() {
            self.reachable(resource, &format!("spec.addresses[{index}]"), *address);
        }
        for (index, listener) in spec.outbound.iter().enumerate() {
            self.outbound(resource, &format!("spec.outbound[{index}]"), listener);
        }
        let addresses = spec.outbound.iter().enumerate();
        let addresses = addresses.map(|(i, o)| (format!("spec.outbound[{i}].listen"), o.listen));
        self.duplicates(resource, "listener at", addresses);
    }

    fn outbound(&mut self, resource: &Resource, field: &str, listener: &'a OutboundListener) {
        if !listener.listen.ip().is_loopback() {
            let message = format!(
                "`{}` is not a loopback address, so other machines could use this workload's identity",
                listener.listen.ip()
            );
            let hint = format!("write `127.0.0.1:{}`", listener.listen.port());
            self.error(resource, &format!("{field}.listen"), message)
                .hint(hint);
        }
        if listener.listen.port() == 0 {
            let message = "the program cannot connect to port 0";
            self.error(resource, &format!("{field}.listen"), message);
        }
        if let Err(Missing {
            part,
            message,
            hint,
        }) = self.service_port(&listener.service, listener.port)
        {
            self.error(resource, &format!("{field}.{part}"), message)
                .maybe_hint(hint);
        }
    }

    /// Checks that a Service has a port.
    pub(super) fn service_port(&self, service: &'a ServiceName, port: u16) -> Result<(), Missing> {
        let ServiceName { namespace, name } = service;
        let found = self.checked.resources.find("Service", namespace, name);
        let Some(Resource {
            spec: Spec::Service(spec),
            ..
        }) = found
        else {
            let mut names = self.names_in("Service", namespace);
            if !self.checked.complete || names.any(|other| other == name) {
                return Ok(());
            }
            let here: Vec<&str> = self
                .names_in("Service", namespace)
                .map(ResourceName::as_str)
                .collect();
            let hint = if here.is_empty() {
                let everywhere = self
                    .checked
                    .declared
                    .iter()
                    .filter(|one| one.kind == "Service");
                let full: Vec<String> = everywhere
                    .map(|one| format!("{}/{}", one.namespace, one.name))
                    .collect();
                nearest::hint(&service.to_string(), full.iter().map(String::as_str))
            } else {
                nearest::hint(name.as_str(), here)
            };
            return Err(Missing {
                part: "service",
                message: format!("there is no Service `{name}` in `{namespace}`"),
                hint,
            });
        };
        if spec.ports.iter().any(|other| other.port == port) {
            return Ok(());
        }
        let ports: Vec<String> = spec
            .ports
            .iter()
            .map(|port| format!("`{}`", port.port))
            .collect();
        Err(Missing {
            part: "port",
            message: format!("the Service `{service}` has no port {port}"),
            hint: (!ports.is_empty()).then(|| format!("available ports: {}", ports.join(", "))),
        })
    }
}

/// The part of a reference to a Service's port that does not exist.
pub(super) struct Missing {
    pub(super) part: &'static str,
    pub(super) message: String,
    pub(super) hint: Option<String>,
}
