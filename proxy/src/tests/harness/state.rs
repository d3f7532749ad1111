use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Instant};

use merlon_config::{
    resource::{OutboundListener, OutboundMode},
    snapshot::{
        Destination, Endpoint, GatewayState, InboundService, MeshState, Version, WorkloadState,
    },
};
use merlon_policy::limit::LimitRegistry;
use serde_json::json;

use super::{DOMAIN, spiffe};
use crate::state::{
    gateway_ports::Port,
    snapshot::{CompiledService, Snapshot},
};

/// Configuration that a node runs with.
#[derive(Clone)]
pub(crate) struct State {
    pub(crate) identity: &'static str,
    pub(crate) services: Vec<serde_json::Value>,
    pub(crate) destinations: Vec<Destination>,
    pub(crate) outbound: Vec<OutboundListener>,
    pub(crate) gateway: Option<serde_json::Value>,
    pub(crate) mode: OutboundMode,
}

impl State {
    pub(crate) fn new(identity: &'static str) -> Self {
        Self {
            identity,
            services: Vec::new(),
            destinations: Vec::new(),
            outbound: Vec::new(),
            gateway: None,
            mode: OutboundMode::Observe,
        }
    }

    pub(crate) fn with_service(mut self, service: serde_json::Value) -> Self {
        self.services.push(service);
        self
    }

    pub(crate) fn with_destination(mut self, destination: Destination) -> Self {
        self.destinations.push(destination);
        self
    }

    pub(super) fn compile(&self) -> Snapshot {
        let mesh = Arc::new(MeshState {
            trust_domain: DOMAIN.parse().unwrap(),
            root_namespace: "merlon-system".parse().unwrap(),
            outbound: self.mode,
            gateways: [spiffe("edge/main").parse().unwrap()].into(),
        });
        let limits = LimitRegistry::new(Instant::now());
        let services: HashMap<_, _> = self
            .services
            .iter()
            .map(|json| {
                let service: InboundService = serde_json::from_value(json.clone()).unwrap();
                let version = Version::of(json.to_string().as_bytes());
                let name = service.name.clone();
                (
                    name,
                    Arc::new(CompiledService::compile(service, &mesh, version, &limits).unwrap()),
                )
            })
            .collect();
        let mut names: Vec<_> = services.keys().cloned().collect();
        names.sort();
        let gateway = self
            .gateway
            .clone()
            .map(|json| serde_json::from_value::<GatewayState>(json).unwrap());
        Snapshot {
            version: Version::of(format!("{:?}", self.services).as_bytes()),
            ports: gateway.as_ref().map(Port::all).unwrap_or_default(),
            certificates: Default::default(),
            secrets: Default::default(),
            credentials: Default::default(),
            workload: WorkloadState {
                identity: spiffe(self.identity).parse().unwrap(),
                services: names,
                outbound: self.outbound.clone(),
                permissive: false,
                secrets: Vec::new(),
                gateway,
            },
            mesh,
            services,
            destinations: self
                .destinations
                .iter()
                .map(|destination| (destination.name.clone(), Arc::new(destination.clone())))
                .collect(),
            addresses: Default::default(),
            bundles: Vec::new(),
            resources: Default::default(),
        }
    }
}

/// Permits every request of every principal.
pub(crate) const PERMIT_ALL: &str =
    r#"@id("all") @reason("a test") permit (principal, action, resource);"#;

/// A service with one port and these policies.
pub(crate) fn service(
    name: &str,
    port: u16,
    target: u16,
    protocol: &str,
    policies: &str,
) -> serde_json::Value {
    json!({
        "name": name,
        "ports": [{ "port": port, "targetPort": target, "protocol": protocol }],
        "policies": [{ "name": name, "text": policies }],
    })
}

/// The destination that callers of a service receive.
pub(crate) fn destination(
    name: &str,
    port: u16,
    protocol: &str,
    address: SocketAddr,
    identity: Option<&str>,
) -> Destination {
    let ports = serde_json::from_value(json!([{ "port": port, "protocol": protocol }])).unwrap();
    let identity = identity.map(|workload| spiffe(workload).parse().unwrap());
    Destination {
        name: name.parse().unwrap(),
        ports,
        endpoints: vec![Endpoint {
            address,
            identity,
            ports: Default::default(),
        }],
    }
}
