use std::collections::BTreeMap;

use super::{
    checker::Checker,
    text::{is_hostname, is_token, method_problem},
};
use crate::{
    name::{Namespace, ResourceName, ServiceName},
    nearest,
    resource::{
        BackendRef, GatewayListener, GatewaySpec, HttpRouteMatch, HttpRouteSpec, ListenerTls,
        ParentRef, Resource, Spec,
    },
};

const MAX_WEIGHT: u64 = 1_000_000;

impl<'a> Checker<'a, '_> {
    pub(super) fn gateway(&mut self, resource: &'a Resource, spec: &'a GatewaySpec) {
        if spec.gateway_class_name != "merlon" {
            let message = format!(
                "`{}` is not a Gateway class of Merlon",
                spec.gateway_class_name
            );
            self.error(resource, "spec.gatewayClassName", message)
                .hint("write `gatewayClassName: merlon`");
        }
        if spec.listeners.is_empty() {
            self.error(
                resource,
                "spec.listeners",
                "a Gateway must have at least one listener",
            );
        }
        for (index, listener) in spec.listeners.iter().enumerate() {
            self.listener(resource, &format!("spec.listeners[{index}]"), listener);
        }
        let listeners = spec.listeners.iter().enumerate();
        let names = listeners
            .clone()
            .map(|(index, listener)| (format!("spec.listeners[{index}].name"), &listener.name));
        self.duplicates(resource, "listener name", names);
        let hosts = listeners.clone().map(|(index, listener)| {
            let host = listener.hostname.as_deref().unwrap_or("*");
            let address = format!("{}` for host `{host}", listener.port);
            (format!("spec.listeners[{index}].port"), address)
        });
        self.duplicates(resource, "listener on port", hosts);
        // A port uses TLS for all hosts or for none: the host is not known yet when a connection starts.
        let mut protocols = BTreeMap::new();
        for (index, listener) in listeners {
            let other = *protocols.entry(listener.port).or_insert(&listener.protocol);
            if *other != listener.protocol {
                let message = format!(
                    "another listener uses the protocol `{other}` on port {}",
                    listener.port
                );
                self.error(
                    resource,
                    &format!("spec.listeners[{index}].protocol"),
                    message,
                )
                .hint("use different ports for the two protocols");
            }
        }
    }

    fn listener(&mut self, resource: &Resource, field: &str, listener: &GatewayListener) {
        self.port(resource, &format!("{field}.port"), listener.port);
        match (listener.protocol.as_str(), &listener.tls) {
            ("HTTPS", None) => {
                self.error(resource, &format!("{field}.tls"), "`HTTPS` requires `tls`")
                    .hint("set `certificateFile` and `keyFile` in it");
            }
            ("HTTP", Some(_)) => {
                let message = "`tls` is not allowed with `HTTP`";
                self.error(resource, &format!("{field}.tls"), message)
                    .hint("write `protocol: HTTPS`");
            }
            ("HTTPS", Some(tls)) => self.certificate(resource, &format!("{field}.tls"), tls),
            ("HTTP", None) => {}
            (other, _) => {
                let hint = nearest::hint(other, ["HTTP", "HTTPS"]);
                self.error(
                    resource,
                    &format!("{field}.protocol"),
                    format!("unknown protocol `{other}`"),
                )
                .maybe_hint(hint);
            }
        }
        if let Some(name) = &listener.hostname {
            self.hostname(resource, &format!("{field}.hostname"), name);
        }
    }

    /// A certificate is two files, or a Secret in a cluster.
    fn certificate(&mut self, resource: &Resource, field: &str, tls: &ListenerTls) {
        let in_cluster = self.checked.allow_missing_targets;
        match (
            &tls.certificate_file,
            &tls.key_file,
            tls.certificate_refs.as_slice(),
        ) {
            (Some(_), Some(_), []) => {}
            (None, None, [_]) if in_cluster => {}
            (None, None, [_]) => {
                let message = "`certificateRefs` is available only in Kubernetes";
                self.error(resource, &format!("{field}.certificateRefs"), message)
                    .hint("set `certificateFile` and `keyFile` instead");
            }
            (None, None, [_, _, ..]) => {
                let message = "a listener has only one certificate";
                self.error(resource, &format!("{field}.certificateRefs"), message)
                    .hint("write one listener for each host, all on the same port");
            }
            (_, _, [_, ..]) => {
                let message = "certificate files and `certificateRefs` are mutually exclusive";
                self.error(resource, field, message)
                    .hint("set only one of them");
            }
            (_, _, []) => {
                let message = "a certificate consists of two files";
                self.error(resource, field, message)
                    .hint("set both `certificateFile` and `keyFile`");
            }
        }
    }

    fn hostname(&mut self, resource: &Resource, field: &str, name: &str) {
        if !is_hostname(name) {
            let message = format!("`{name}` is not a host name");
            let hint = "use labels of lower-case letters, digits and hyphens, joined by dots, with an optional leading `*.`";
            self.error(resource, field, message).hint(hint);
        }
    }

    pub(super) fn route(&mut self, resource: &'a Resource, spec: &'a HttpRouteSpec) {
        if spec.parent_refs.is_empty() {
            self.error(
                resource,
                "spec.parentRefs",
                "a route must have at least one parent Gateway",
            );
        }
        for (index, parent) in spec.parent_refs.iter().enumerate() {
            self.parent(resource, &format!("spec.parentRefs[{index}]"), parent);
        }
        for (index, name) in spec.hostnames.iter().enumerate() {
            self.hostname(resource, &format!("spec.hostnames[{index}]"), name);
        }
        if spec.rules.is_empty() {
            self.error(
                resource,
                "spec.rules",
                "a route must have at least one rule",
            );
        }
        for (index, rule) in spec.rules.iter().enumerate() {
            let field = format!("spec.rules[{index}]");
            for (index, one) in rule.matches.iter().enumerate() {
                self.route_match(resource, &format!("{field}.matches[{index}]"), one);
            }
            for (index, backend) in rule.backend_refs.iter().enumerate() {
                self.backend(resource, &format!("{field}.backendRefs[{index}]"), backend);
            }
        }
    }

    fn parent(&mut self, resource: &'a Resource, field: &str, parent: &'a ParentRef) {
        let namespace = parent.namespace.as_ref().unwrap_or(&resource.namespace);
        // In a cluster, the control plane has already decided which routes a listener accepts.
        if *namespace != resource.namespace && !self.checked.allow_missing_targets {
            // `allowedRoutes` of Gateway API defaults to `Same`: otherwise any team could publish under another's host.
            let message =
                format!("a Gateway accepts only routes of its own namespace, `{namespace}`");
            let hint = format!(
                "move this route to `{namespace}`; its backends may be in other namespaces"
            );
            self.error(resource, &format!("{field}.namespace"), message)
                .hint(hint);
            return;
        }
        let here: Vec<&str> = self
            .names_in("Gateway", namespace)
            .map(ResourceName::as_str)
            .collect();
        if self.checked.complete && !here.contains(&parent.name.as_str()) {
            let message = format!("there is no Gateway `{}` in `{namespace}`", parent.name);
            let hint = nearest::hint(parent.name.as_str(), here);
            self.error(resource, &format!("{field}.name"), message)
                .maybe_hint(hint);
        }
        if let Some(section) = &parent.section_name {
            self.section(
                resource,
                &format!("{field}.sectionName"),
                (namespace, &parent.name),
                section,
            );
        }
    }

    fn section(
        &mut self,
        resource: &Resource,
        field: &str,
        (namespace, gateway): (&Namespace, &ResourceName),
        section: &ResourceName,
    ) {
        let found = self.checked.resources.find("Gateway", namespace, gateway);
        let Some(Spec::Gateway(spec)) = found.map(|gateway| &gateway.spec) else {
            return;
        };
        let listeners: Vec<&str> = spec.listeners.iter().map(|one| one.name.as_str()).collect();
        if !listeners.contains(&section.as_str()) {
            let message = format!("the Gateway `{gateway}` has no listener `{section}`");
            let hint = nearest::hint(section.as_str(), listeners);
            self.error(resource, field, message).maybe_hint(hint);
        }
    }

    fn route_match(&mut self, resource: &Resource, field: &str, one: &HttpRouteMatch) {
        if let Some(path) = &one.path {
            let value = &path.value;
            let normal = value.starts_with('/')
                && !value.contains("//")
                && !value
                    .split('/')
                    .any(|segment| matches!(segment, "." | ".."))
                && value
                    .bytes()
                    .all(|b| b.is_ascii_graphic() && !b"?#\"<>\\^`{|}".contains(&b));
            if !normal {
                let message = format!("`{value}` is not a normalized path");
                let hint = "it must begin with `/` and have no `//`, no `.` or `..` segment, no query and no parameter";
                self.error(resource, &format!("{field}.path.value"), message)
                    .hint(hint);
            }
        }
        for (index, header) in one.headers.iter().enumerate() {
            if !is_token(&header.name) {
                let message = format!("`{}` is not a header name", header.name);
                self.error(resource, &format!("{field}.headers[{index}].name"), message);
            }
        }
        if let Some(method) = &one.method
            && let Some((message, hint)) = method_problem(method)
        {
            self.error(resource, &format!("{field}.method"), message)
                .maybe_hint(hint);
        }
    }

    fn backend(&mut self, resource: &'a Resource, field: &str, backend: &BackendRef) {
        self.port(resource, &format!("{field}.port"), backend.port);
        let weight = backend.weight.into();
        self.range(
            resource,
            &format!("{field}.weight"),
            weight,
            (0, MAX_WEIGHT),
        );
        let service = ServiceName {
            namespace: backend
                .namespace
                .clone()
                .unwrap_or_else(|| resource.namespace.clone()),
            name: backend.name.clone(),
        };
        // Gateway API specifies 500 for a missing backend, so the backend may be created later.
        if let Err(missing) = self.service_port(&service, backend.port) {
            let part = match missing.part {
                "service" => "name",
                part => part,
            };
            self.warning(resource, &format!("{field}.{part}"), missing.message)
                .maybe_hint(missing.hint);
        }
    }
}
