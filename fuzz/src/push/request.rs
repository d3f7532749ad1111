//! Any sequence of requests: a proxy gets what it is subscribed to and is entitled to, each version once.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::LazyLock,
};

use merlon_api::{
    MAX_SUBSCRIPTIONS,
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Status},
    node, open_resource,
};
use merlon_config::snapshot::{ResourceKind, Version, WorkloadState};
use merlon_control_plane::fuzzing::{States, Stream};
use prost::Message as _;

use crate::input::Input;

const WEB: &str = "spiffe://demo.test/ns/shop/sa/web";

/// Names that requests use, of every kind.
const NAMES: [&str; 12] = [
    WEB,
    "mesh",
    "demo.test",
    "shop/web",
    "shop/orders",
    "shop/payments",
    "127.0.0.1:7002",
    "10.9.0.1:80",
    "spiffe://demo.test/ns/shop/sa/orders",
    "shop/gone",
    "*",
    "",
];

static STATES: LazyLock<States> = LazyLock::new(|| {
    let states = [
        include_str!("../../seeds/load/web-and-orders.yaml"),
        include_str!("../../seeds/load/web-alone.yaml"),
    ];
    States::new(&"demo.test".parse().expect("a trust domain"), &states).expect("two states")
});

/// Runs the steps that the bytes say: requests with any content, changes of the mesh, the end of a wait.
pub(crate) fn request(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut stream = Stream::new(WEB.parse().expect("an identity"), &STATES);
    let mut proxy = Proxy::default();
    while !input.is_empty() {
        let step = input.byte() % 8;
        let ended = match step {
            0 => stream.publish(input.index(2)),
            1 => {
                stream.release();
                Ok(())
            }
            _ => {
                let Some(request) = proxy.request(step, &mut input) else {
                    continue;
                };
                let ack = stream.receive(&request);
                if let Ok(Some((true, version))) = &ack {
                    let version = version.as_ref().expect("an acknowledged version");
                    assert!(
                        proxy.is_known(version, &request),
                        "{version} was never sent"
                    );
                }
                proxy.took(&request);
                ack.map(drop)
            }
        };
        if let Err(message) = ended {
            return assert!(!message.is_empty());
        }
        assert!(stream.subscriptions() <= MAX_SUBSCRIPTIONS);
        proxy.check(&stream.due());
    }
}

/// What the proxy asked for and got.
#[derive(Default)]
struct Proxy {
    started: bool,
    /// Subscriptions by type and name, with the version that was reported or received last.
    subscribed: BTreeMap<(String, String), Option<String>>,
    manifests: BTreeMap<String, String>,
    nonces: BTreeSet<String>,
    last_nonce: String,
}

impl Proxy {
    fn request(&mut self, step: u8, input: &mut Input<'_>) -> Option<DeltaDiscoveryRequest> {
        let kind = ResourceKind::ALL[input.index(ResourceKind::ALL.len())];
        let name = NAMES[input.index(NAMES.len())].to_owned();
        let mut request = DeltaDiscoveryRequest {
            type_url: kind.type_url().to_owned(),
            node: (!self.started).then(|| node("web-1", None, "0.1.0")),
            ..DeltaDiscoveryRequest::default()
        };
        match step {
            2 => request.resource_names_subscribe.push(name),
            3 => {
                let held = self
                    .subscribed
                    .get(&(request.type_url.clone(), name.clone()));
                let held = held.cloned().flatten().unwrap_or_else(|| "0".repeat(64));
                request.initial_resource_versions.insert(name.clone(), held);
                request.resource_names_subscribe.push(name);
            }
            4 => request.resource_names_unsubscribe.push(name),
            5 => {
                request.response_nonce.clone_from(&self.last_nonce);
                let refused = input.byte() & 1 == 1;
                request.error_detail = refused.then(|| Status {
                    code: 3,
                    message: input.text(),
                    ..Status::default()
                });
            }
            6 => request.resource_names_subscribe.push(input.text()),
            _ => request = DeltaDiscoveryRequest::decode(input.sized()).ok()?,
        }
        self.started = true;
        Some(request)
    }

    /// Whether the control plane sent this manifest, or the proxy already had it when the stream began.
    fn is_known(&self, version: &Version, request: &DeltaDiscoveryRequest) -> bool {
        let mut known = self.manifests.values();
        let mut reported = request.initial_resource_versions.values();
        known.any(|one| one == version.as_str()) || reported.any(|one| one == version.as_str())
    }

    fn took(&mut self, request: &DeltaDiscoveryRequest) {
        let key = |name: &String| (request.type_url.clone(), name.clone());
        for name in &request.resource_names_unsubscribe {
            self.subscribed.remove(&key(name));
        }
        for name in &request.resource_names_subscribe {
            let held = request.initial_resource_versions.get(name);
            self.subscribed.insert(key(name), held.cloned());
        }
    }

    fn check(&mut self, responses: &[DeltaDiscoveryResponse]) {
        let manifest = ResourceKind::Manifest.type_url();
        for (at, response) in responses.iter().enumerate() {
            assert!(self.nonces.insert(response.nonce.clone()), "a nonce twice");
            self.last_nonce.clone_from(&response.nonce);
            assert!(response.type_url != manifest || at + 1 == responses.len());
            for name in &response.removed_resources {
                let key = (response.type_url.clone(), name.clone());
                let held = self.subscribed.get_mut(&key).expect("a subscription");
                *held = None;
            }
            for resource in &response.resources {
                let key = (response.type_url.clone(), resource.name.clone());
                let held = self.subscribed.get_mut(&key).expect("a subscription");
                let version = Some(resource.version.clone());
                assert_ne!(*held, version, "{} was sent again", resource.name);
                *held = version;
                let received = open_resource(resource.clone()).expect("a whole resource");
                match received.key.kind {
                    ResourceKind::Manifest => {
                        assert_eq!(received.key.name, WEB);
                        let version = resource.version.clone();
                        self.manifests.insert(response.nonce.clone(), version);
                    }
                    ResourceKind::Workload => {
                        let state: WorkloadState =
                            serde_json::from_slice(&received.json).expect("a workload");
                        assert_eq!(
                            state.identity.to_string(),
                            WEB,
                            "the state of another proxy"
                        );
                    }
                    ResourceKind::Service => assert_eq!(received.key.name, "shop/web"),
                    _ => {}
                }
            }
        }
    }
}
