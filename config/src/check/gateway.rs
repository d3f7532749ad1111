use std::collections::BTreeMap;

use super::{
    Checker,
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

const MOST_WEIGHT: u64 = 1_000_000;

impl<'a> Checker<'a, '_> {
    pub(super) fn gateway(&mut self, resource: &'a Resource, spec: &'a GatewaySpec) {
        if spec.gateway_class_name != "merlon" {
            let message = format!(
                "`{}` is not a class that Merlon runs",
                spec.gateway_class_name
            );
            self.error(resource, "spec.gatewayClassName", message)
                .hint("write `gatewayClassName: merlon`");
        }
        if spec.listeners.is_empty() {
            self.error(
                resource,
                "spec.listeners",
                "a Gateway has at least one listener",
            );
        }
        for (index, listener) in spec.listeners.iter().enumerate() {
            self.listener(resource, &format!("spec.listeners[{index}]"), listener);
        }
        let listeners = spec.listeners.iter().enumerate();
        let names = listeners
            .clone()
            .map(|(index, listener)| (format!("spec.listeners[{index}].name"), &listener.name));
        self.twice(resource, "listeners called", names);
        let hosts = listeners.clone().map(|(index, listener)| {
            let host = listener.hostname.as_deref().unwrap_or("*");
            let address = format!("{}` for host `{host}", listener.port);
            (format!("spec.listeners[{index}].port"), address)
        });
        self.twice(resource, "listeners on port", hosts);
        // One port cannot begin with TLS for some hosts and without it for others: nobody knows the host before that.
        let mut spoken = BTreeMap::new();
        for (index, listener) in listeners {
            let other = *spoken.entry(listener.port).or_insert(&listener.protocol);
            if *other != listener.protocol {
                let message = format!("port {} is `{other}` for another listener", listener.port);
                self.error(
                    resource,
                    &format!("spec.listeners[{index}].protocol"),
                    message,
                )
                .hint("give the two protocols different ports");
            }
        }
    }

    fn listener(&mut self, resource: &Resource, field: &str, listener: &GatewayListener) {
        self.port(resource, &format!("{field}.port"), listener.port);
        match (listener.protocol.as_str(), &listener.tls) {
            ("HTTPS", None) => {
                self.error(resource, &format!("{field}.tls"), "`HTTPS` needs `tls`")
                    .hint("name `certificateFile` and `keyFile` in it");
            }
            ("HTTP", Some(_)) => {
                self.error(resource, &format!("{field}.tls"), "`HTTP` has no `tls`")
                    .hint("write `protocol: HTTPS`");
            }
            ("HTTPS", Some(tls)) => self.certificate(resource, &format!("{field}.tls"), tls),
            ("HTTP", None) => {}
            (other, _) => {
                let hint = nearest::hint(other, ["HTTP", "HTTPS"]);
                self.error(
                    resource,
                    &format!("{field}.protocol"),
                    format!("`{other}` is not known here"),
                )
                .maybe_hint(hint);
            }
        }
        if let Some(name) = &listener.hostname {
            self.hostname(resource, &format!("{field}.hostname"), name);
        }
    }

    /// Two files, or in a cluster a Secret.
    fn certificate(&mut self, resource: &Resource, field: &str, tls: &ListenerTls) {
        let in_cluster = self.checked.targets_may_come_later;
        match (
            &tls.certificate_file,
            &tls.key_file,
            tls.certificate_refs.as_slice(),
        ) {
            (Some(_), Some(_), []) => {}
            (None, None, [_]) if in_cluster => {}
            (None, None, [_]) => {
                let message = "there are no Secrets outside a cluster";
                self.error(resource, &format!("{field}.certificateRefs"), message)
                    .hint("name `certificateFile` and `keyFile` instead");
            }
            (None, None, [_, _, ..]) => {
                let message = "a listener has one certificate";
                self.error(resource, &format!("{field}.certificateRefs"), message)
                    .hint("write a listener for each host, all on this port");
            }
            (_, _, [_, ..]) => {
                let message = "files and a Secret are named at once";
                self.error(resource, field, message)
                    .hint("name one of them");
            }
            (_, _, []) => {
                let message = "a certificate is two files";
                self.error(resource, field, message)
                    .hint("name both `certificateFile` and `keyFile`");
            }
        }
    }

    fn hostname(&mut self, resource: &Resource, field: &str, name: &str) {
        if !is_hostname(name) {
            let message = format!("`{name}` is not a host name");
            let hint = "lower-case letters, digits and hyphens in labels joined by dots; `*.` may stand in front";
            self.error(resource, field, message).hint(hint);
        }
    }

    pub(super) fn route(&mut self, resource: &'a Resource, spec: &'a HttpRouteSpec) {
        if spec.parent_refs.is_empty() {
            self.error(
                resource,
                "spec.parentRefs",
                "a route belongs to at least one Gateway",
            );
        }
        for (index, parent) in spec.parent_refs.iter().enumerate() {
            self.parent(resource, &format!("spec.parentRefs[{index}]"), parent);
        }
        for (index, name) in spec.hostnames.iter().enumerate() {
            self.hostname(resource, &format!("spec.hostnames[{index}]"), name);
        }
        if spec.rules.is_empty() {
            self.error(resource, "spec.rules", "a route has at least one rule");
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
        // In a cluster it is known beforehand which routes a listener takes.
        if *namespace != resource.namespace && !self.checked.targets_may_come_later {
            // `allowedRoutes` of Gateway API begins with `Same`: else anyone could publish under another team's host.
            let message = format!("a Gateway takes routes of its own namespace `{namespace}` only");
            let hint = format!("write this route in `{namespace}`; its backends may be elsewhere");
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
                let message = format!("no normalised path is `{value}`");
                self.error(resource, &format!("{field}.path.value"), message)
                    .hint("it begins with `/` and has no `//`, `.`, `..`, query or parameter");
            }
        }
        for (index, header) in one.headers.iter().enumerate() {
            if !is_token(&header.name) {
                let message = format!("`{}` is not the name of a header", header.name);
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
            (0, MOST_WEIGHT),
        );
        let service = ServiceName {
            namespace: backend
                .namespace
                .clone()
                .unwrap_or_else(|| resource.namespace.clone()),
            name: backend.name.clone(),
        };
        // Gateway API answers 500 for a backend that is not there, so it may come later.
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
