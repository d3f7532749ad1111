//! A Gateway and its listeners.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::api::core::v1::Service;
use kube::{ResourceExt as _, api::DynamicObject};
use merlon_config::resource::GatewayListener;
use serde_json::{Value, json};

use super::{
    super::{
        api,
        report::{ConditionDraft, GatewayDetails, GatewayStatus, ListenerStatus},
    },
    GATEWAY_LABEL, GatewayObjects, is_of_a_gateway,
    listener::listener,
    report, spec,
};
use crate::state::snapshot::Certificates;

/// Ports that the proxy uses itself.
const OWN_PORTS: [u16; 1] = [7562];

/// A Gateway of one of Merlon's classes, while routes are attached to it.
pub(super) struct OwnGateway {
    pub(super) report: GatewayStatus,
    pub(super) accepted: ConditionDraft,
    pub(super) listeners: Vec<OwnListener>,
}

pub(super) struct OwnListener {
    pub(super) details: ListenerStatus,
    pub(super) port: u16,
    pub(super) hostname: Option<String>,
    pub(super) allowed: api::AllowedRoutes,
    /// The converted listener; `None` if it is not valid.
    pub(super) converted: Option<GatewayListener>,
}

impl OwnListener {
    pub(super) fn is_served(&self) -> bool {
        self.converted.is_some() && self.details.accepted.ok && self.details.resolved.ok
    }
}

pub(super) fn gateway(
    object: &DynamicObject,
    seen: &GatewayObjects,
    certificates: &mut Certificates,
) -> OwnGateway {
    let report = report("Gateway", object, GatewayDetails::Class);
    let refused = |condition: ConditionDraft| OwnGateway {
        report: report.clone(),
        accepted: condition,
        listeners: Vec::new(),
    };
    let written: api::Gateway = match spec(object) {
        Ok(spec) => spec,
        Err(why) => return refused(ConditionDraft::negative("Invalid", why)),
    };
    let accepted = if report.namespace != seen.namespace {
        let message = format!(
            "gateways of the class `{}` must be in namespace `{}`, whose Secrets Merlon may read",
            written.gateway_class_name, seen.namespace
        );
        ConditionDraft::negative("Invalid", message)
    } else if !written.addresses.is_empty() {
        let message = "spec.addresses: not supported, because the gateway's Service has the addresses; remove it";
        ConditionDraft::negative("UnsupportedAddress", message)
    } else if written.tls.is_some() {
        let message = "spec.tls: client certificates are not supported; remove it";
        ConditionDraft::negative("Invalid", message)
    } else if let Some(service) = namesake(&report, &seen.services) {
        let message = format!(
            "the Service `{service}` has the same name, and policies call both Service::\"{service}\"; rename one of them"
        );
        ConditionDraft::negative("Invalid", message)
    } else {
        ConditionDraft::positive("Accepted", "valid and in force")
    };
    let mut ports: BTreeMap<u16, String> = BTreeMap::new();
    let mut hosts = BTreeSet::new();
    let listeners = written.listeners.into_iter().map(|written| {
        let mut details = ListenerStatus {
            name: written.name.clone(),
            attached: 0,
            accepted: ConditionDraft::positive("Accepted", "valid"),
            resolved: ConditionDraft::positive("ResolvedRefs", "all references are resolved"),
            conflict: None,
        };
        let spoken = ports
            .entry(written.port)
            .or_insert(written.protocol.clone());
        let host = (written.port, written.hostname.clone());
        if *spoken != written.protocol {
            let message = format!("another listener uses {spoken} on port {}", written.port);
            details.conflict = Some(ConditionDraft::negative(
                "ProtocolConflict",
                message.clone(),
            ));
            details.accepted = ConditionDraft::negative("ProtocolConflict", message);
        } else if !hosts.insert(host) {
            let message = format!("another listener has this host on port {}", written.port);
            details.conflict = Some(ConditionDraft::negative(
                "HostnameConflict",
                message.clone(),
            ));
            details.accepted = ConditionDraft::negative("HostnameConflict", message);
        } else if OWN_PORTS.contains(&written.port) {
            let message = format!("port {} is reserved for the proxy", written.port);
            details.accepted = ConditionDraft::negative("PortUnavailable", message);
        }
        let converted = listener(
            &written,
            &report.namespace,
            seen,
            certificates,
            &mut details,
        );
        OwnListener {
            details,
            port: written.port,
            hostname: written.hostname,
            allowed: written.allowed_routes.unwrap_or_default(),
            converted,
        }
    });
    let listeners = listeners.collect();
    OwnGateway {
        report,
        accepted,
        listeners,
    }
}

/// A Service with the name of a Gateway that does not belong to the Gateway.
fn namesake(gateway: &GatewayStatus, services: &[Arc<Service>]) -> Option<String> {
    let mut all = services.iter();
    let found = all.find(|service| {
        service.namespace().as_deref() == Some(gateway.namespace.as_str())
            && service.name_any() == gateway.name
            && !is_of_a_gateway(service)
    });
    found.map(|service| format!("{}/{}", gateway.namespace, service.name_any()))
}

/// The addresses of a Gateway, which are those of its Services.
pub(super) fn addresses(namespace: &str, name: &str, services: &[Arc<Service>]) -> Vec<Value> {
    let own = services.iter().filter(|service| {
        let selector = service
            .spec
            .as_ref()
            .and_then(|spec| spec.selector.as_ref());
        service.namespace().as_deref() == Some(namespace)
            && selector
                .and_then(|selector| selector.get(GATEWAY_LABEL))
                .map(String::as_str)
                == Some(name)
    });
    let mut external = Vec::new();
    let mut internal = Vec::new();
    for service in own {
        let status = service.status.as_ref();
        let balancer = status.and_then(|status| status.load_balancer.as_ref());
        for ingress in balancer
            .iter()
            .filter_map(|one| one.ingress.as_ref())
            .flatten()
        {
            if let Some(ip) = &ingress.ip {
                external.push(json!({ "type": "IPAddress", "value": ip }));
            } else if let Some(host) = &ingress.hostname {
                external.push(json!({ "type": "Hostname", "value": host }));
            }
        }
        let ips = service
            .spec
            .as_ref()
            .and_then(|spec| spec.cluster_ips.as_ref());
        for ip in ips.into_iter().flatten().filter(|ip| *ip != "None") {
            internal.push(json!({ "type": "IPAddress", "value": ip }));
        }
    }
    if external.is_empty() {
        internal
    } else {
        external
    }
}
