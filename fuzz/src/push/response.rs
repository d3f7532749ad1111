//! Any sequence of responses: the proxy enforces one whole state of the control plane, never a mix of two.

use std::{collections::BTreeMap, sync::LazyLock};

use merlon_api::{
    discovery::{DeltaDiscoveryResponse, Resource},
    seal_resource,
};
use merlon_config::{
    name::SpiffeId,
    snapshot::{
        Destination, InboundService, Manifest, ManifestEntry, MeshState, ResourceKey, ResourceKind,
        Version, WorkloadState,
    },
};
use merlon_proxy::fuzzing::{Discovery, Snapshot};
use prost::Message as _;
use serde::de::DeserializeOwned;

use crate::input::Input;

const ORDERS: &str = "spiffe://one.test/ns/shop/sa/orders";

type State = BTreeMap<ResourceKey, Vec<u8>>;

/// States that differ in one thing each. The last three are not valid.
static STATES: LazyLock<Vec<State>> = LazyLock::new(|| {
    let mesh = |outbound: &str| {
        let json = format!(
            r#"{{"trustDomain":"one.test","rootNamespace":"merlon-system","outbound":"{outbound}"}}"#
        );
        (key(ResourceKind::Mesh, "mesh"), json)
    };
    let workload = |identity: &str| {
        let json = format!(r#"{{"identity":"{identity}","services":["shop/orders"]}}"#);
        (key(ResourceKind::Workload, "shop/orders"), json)
    };
    let service = |effect: &str| {
        let text = format!("{effect}(principal, action, resource) when {{ context.port == 80 }};");
        let json = serde_json::json!({
            "name": "shop/orders",
            "ports": [{ "port": 80, "targetPort": 8080 }],
            "policies": [{ "name": "shop/orders", "text": format!("@id(\"one\")\n{text}") }],
        });
        (key(ResourceKind::Service, "shop/orders"), json.to_string())
    };
    let destination = |port: u16| {
        let json = format!(r#"{{"name":"shop/payments","ports":[{{"port":{port}}}]}}"#);
        (key(ResourceKind::Destination, "shop/payments"), json)
    };
    let other = "spiffe://one.test/ns/shop/sa/web";
    [
        vec![mesh("observe"), workload(ORDERS), service("permit")],
        vec![mesh("observe"), workload(ORDERS), service("forbid")],
        vec![mesh("deny"), workload(ORDERS), service("permit")],
        vec![
            mesh("observe"),
            workload(ORDERS),
            service("permit"),
            destination(80),
        ],
        vec![
            mesh("observe"),
            workload(ORDERS),
            service("permit"),
            destination(81),
        ],
        vec![mesh("observe"), workload(ORDERS), service("perhaps")],
        vec![mesh("observe"), workload(other), service("permit")],
        vec![mesh("observe"), service("permit")],
    ]
    .map(|state| {
        state
            .into_iter()
            .map(|(key, json)| (key, json.into_bytes()))
            .collect()
    })
    .into()
});

fn key(kind: ResourceKind, name: &str) -> ResourceKey {
    let name = name.to_owned();
    ResourceKey { kind, name }
}

fn manifest(state: &State) -> Vec<u8> {
    let entries = state.iter().map(|(key, json)| ManifestEntry {
        key: key.clone(),
        version: Version::of(json),
    });
    let entries = entries.collect();
    serde_json::to_vec(&Manifest { entries }).expect("JSON")
}

/// Runs the steps that the bytes say: responses in any order, of any state, with any content; the end of a
/// compilation, a time-out, another stream, a look-up.
pub(crate) fn response(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut sent = Sent::default();
    let mut proxy = Discovery::new(ORDERS.parse().expect("an identity"));
    while !input.is_empty() {
        let step = input.byte() % 10;
        let state = &STATES[input.index(STATES.len())];
        let (kind, resources) = match step {
            0 => {
                let own = key(ResourceKind::Manifest, ORDERS);
                (own.kind, vec![seal(&own, &manifest(state))])
            }
            1 => {
                let kind = ResourceKind::ALL[input.index(ResourceKind::ALL.len())];
                let all = state.iter().filter(|(key, _)| key.kind == kind);
                (kind, all.map(|(key, json)| seal(key, json)).collect())
            }
            2 => {
                let at = input.index(state.len());
                let (key, json) = state.iter().nth(at).expect("a resource");
                (key.kind, vec![seal(key, json)])
            }
            3 => {
                let at = input.index(state.len());
                let (key, _) = state.iter().nth(at).expect("a resource");
                (key.kind, vec![seal(key, input.part())])
            }
            4 => {
                let own = key(ResourceKind::Manifest, ORDERS);
                (own.kind, vec![seal(&own, input.part())])
            }
            5 => {
                proxy.finish();
                sent.check(&mut proxy);
                continue;
            }
            6 => {
                proxy.give_up();
                sent.check(&mut proxy);
                continue;
            }
            7 => {
                proxy.reconnect();
                sent.reconnected();
                sent.check(&mut proxy);
                continue;
            }
            8 => {
                proxy.look_up("shop/payments");
                proxy.look_up(&input.text());
                continue;
            }
            _ => match DeltaDiscoveryResponse::decode(input.sized()) {
                Ok(response) => {
                    let kind = ResourceKind::from_type_url(&response.type_url);
                    (
                        kind.unwrap_or(ResourceKind::Destination),
                        response.resources,
                    )
                }
                Err(_) => continue,
            },
        };
        let removed_resources = match step {
            9 => vec!["shop/payments".to_owned(), "shop/orders".to_owned()],
            _ => Vec::new(),
        };
        let response = DeltaDiscoveryResponse {
            nonce: sent.record(kind, &resources),
            type_url: kind.type_url().to_owned(),
            resources,
            removed_resources,
            ..DeltaDiscoveryResponse::default()
        };
        if proxy.receive(response).is_err() {
            proxy.reconnect();
            sent.reconnected();
        }
        sent.check(&mut proxy);
    }
}

fn seal(key: &ResourceKey, json: &[u8]) -> Resource {
    seal_resource(key, &Version::of(json), json)
}

/// What the control plane sent.
#[derive(Default)]
struct Sent {
    contents: BTreeMap<Version, Vec<u8>>,
    /// The manifests by the number of their response, which is the nonce on its stream.
    manifests: BTreeMap<usize, Version>,
    responses: usize,
    /// The number of responses before the current stream.
    before: usize,
    /// The number of the newest acknowledged manifest.
    acknowledged: usize,
}

impl Sent {
    /// Returns the nonce of the response.
    fn record(&mut self, kind: ResourceKind, resources: &[Resource]) -> String {
        self.responses += 1;
        let number = self.responses;
        let contents = resources.iter().filter_map(|one| one.resource.as_ref());
        for content in contents {
            let version = Version::of(&content.value);
            self.contents.insert(version, content.value.clone());
        }
        if kind == ResourceKind::Manifest
            && let Some(first) = resources.first().and_then(|one| one.resource.as_ref())
        {
            self.manifests.insert(number, Version::of(&first.value));
        }
        // As in the control plane, each stream counts from its start.
        (number - self.before).to_string()
    }

    fn reconnected(&mut self) {
        self.before = self.responses;
    }

    fn content<T: DeserializeOwned>(&self, version: &Version) -> T {
        serde_json::from_slice(&self.contents[version]).expect("what is in force can be read")
    }

    /// The state in force is the one of its manifest. Only that one was acknowledged, and nothing older replaces it.
    fn check(&mut self, proxy: &mut Discovery) {
        let own = ResourceKind::Manifest.type_url();
        for request in proxy.requests() {
            let Ok(nonce) = request.response_nonce.parse::<usize>() else {
                continue;
            };
            let number = nonce + self.before;
            if request.type_url == own
                && request.error_detail.is_none()
                && let Some(manifest) = self.manifests.get(&number)
            {
                let enforced = proxy.in_force().map(|snapshot| &snapshot.version);
                let why = "an acknowledgement of what is not in force";
                assert_eq!(enforced, Some(manifest), "{why}");
                self.acknowledged = self.acknowledged.max(number);
            }
        }
        if let Some(snapshot) = proxy.in_force() {
            let mut manifests = self.manifests.iter().rev();
            let newest = manifests.find(|(_, version)| **version == snapshot.version);
            let newest = newest.map(|(number, _)| *number);
            let why = "older than what was acknowledged";
            assert!(newest >= Some(self.acknowledged), "{why}");
            self.is_whole(snapshot);
        }
    }

    fn is_whole(&self, snapshot: &Snapshot) {
        let manifest: Manifest = self.content(&snapshot.version);
        let entries = manifest.entries.into_iter();
        let entries: BTreeMap<_, _> = entries.map(|entry| (entry.key, entry.version)).collect();
        assert_eq!(snapshot.resources, entries);
        let identity: SpiffeId = ORDERS.parse().expect("an identity");
        assert_eq!(*snapshot.identity(), identity);
        let (mut services, mut destinations) = (0, 0);
        for (key, version) in &entries {
            match key.kind {
                ResourceKind::Mesh => {
                    assert_eq!(*snapshot.mesh, self.content::<MeshState>(version))
                }
                ResourceKind::Workload => {
                    assert_eq!(snapshot.workload, self.content::<WorkloadState>(version));
                }
                ResourceKind::Service => {
                    services += 1;
                    let name = key.name.parse().expect("a name");
                    let service = &snapshot.services[&name];
                    assert_eq!(*service.state, self.content::<InboundService>(version));
                    assert_eq!(service.version, *version);
                    assert_eq!(*service.mesh, *snapshot.mesh, "compiled for another mesh");
                }
                ResourceKind::Destination => {
                    destinations += 1;
                    let name = key.name.parse().expect("a name");
                    let own = &snapshot.destinations[&name];
                    assert_eq!(**own, self.content::<Destination>(version));
                }
                _ => {}
            }
        }
        assert_eq!(services, snapshot.services.len());
        assert_eq!(destinations, snapshot.destinations.len());
    }
}
