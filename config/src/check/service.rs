use super::checker::Checker;
use crate::resource::{Resource, ServiceSpec, Spec};

impl<'a> Checker<'a, '_> {
    pub(super) fn service(&mut self, resource: &'a Resource, spec: &ServiceSpec) {
        if spec.selector.is_empty() {
            let hint = "set labels of its Workloads, for example `selector: { app: orders }`";
            self.error(resource, "spec.selector", "`selector` must not be empty")
                .hint(hint);
        } else if spec.endpoints.is_none()
            && self.all_read("Workload")
            && !self.selects_any(resource, spec)
        {
            let message = format!(
                "no Workload in `{}` has these labels, so the Service has no endpoints",
                resource.namespace
            );
            self.warning(resource, "spec.selector", message);
        }
        for (index, address) in spec.addresses.iter().enumerate() {
            self.reachable(resource, &format!("spec.addresses[{index}]"), *address);
        }
        if spec.ports.is_empty() {
            let message = "a Service must have at least one port";
            self.error(resource, "spec.ports", message);
        }
        let several = spec.ports.len() > 1;
        for (index, port) in spec.ports.iter().enumerate() {
            let field = format!("spec.ports[{index}]");
            self.port(resource, &format!("{field}.port"), port.port);
            if let Some(target) = port.target_port {
                self.port(resource, &format!("{field}.targetPort"), target);
            }
            if several && port.name.is_none() {
                let message = "`name` is missing: each of several ports must have one";
                self.error(resource, &format!("{field}.name"), message);
            }
        }
        let ports = spec.ports.iter().enumerate();
        let numbers = ports
            .clone()
            .map(|(index, port)| (format!("spec.ports[{index}].port"), port.port));
        self.duplicates(resource, "port", numbers);
        let names = ports.filter_map(|(index, port)| {
            let name = port.name.as_ref()?;
            Some((format!("spec.ports[{index}].name"), name))
        });
        self.duplicates(resource, "port name", names);
    }

    fn selects_any(&self, resource: &Resource, spec: &ServiceSpec) -> bool {
        self.checked.resources.list.iter().any(|other| {
            matches!(other.spec, Spec::Workload(_))
                && other.namespace == resource.namespace
                && spec
                    .selector
                    .iter()
                    .all(|(label, value)| other.labels.get(label) == Some(value))
        })
    }
}
