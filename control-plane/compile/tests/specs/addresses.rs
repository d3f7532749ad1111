//! How addresses are resolved when connections are intercepted.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of specifications fail by panicking"
)]

use std::sync::Arc;

use merlon_compile::{Compiler, Mesh, Wanted};
use merlon_config::{
    load::load_texts,
    snapshot::{AddressState, Destination, WorkloadState},
};

/// `orders` has two pods behind one Service, `ledger` no cluster IP, `outsider` only pods outside the mesh, and
/// `asleep` no pods.
const MESH: &str = "
apiVersion: merlon.io/v1alpha1
kind: MeshConfig
metadata: { name: mesh, namespace: merlon-system }
spec: { trustDomain: demo.test, permissiveNamespaces: [bank] }
---
apiVersion: merlon.io/v1alpha1
kind: Workload
metadata: { name: orders-1, namespace: shop, labels: { app: orders } }
spec: { serviceAccount: orders, addresses: [10.1.0.1, \"fd00::1\"] }
---
apiVersion: merlon.io/v1alpha1
kind: Workload
metadata: { name: orders-2, namespace: shop, labels: { app: orders } }
spec: { serviceAccount: orders, addresses: [10.1.0.2] }
---
apiVersion: merlon.io/v1alpha1
kind: Workload
metadata: { name: ledger-0, namespace: bank, labels: { app: ledger } }
spec: { serviceAccount: ledger, addresses: [10.1.0.3] }
---
apiVersion: merlon.io/v1alpha1
kind: Service
metadata: { name: orders, namespace: shop }
spec:
  selector: { app: orders }
  addresses: [10.9.0.1]
  endpoints: [10.1.0.1, \"fd00::1\", 10.1.0.77]
  ports: [{ port: 80, targetPort: 8080 }]
---
apiVersion: merlon.io/v1alpha1
kind: Service
metadata: { name: ledger, namespace: bank }
spec: { selector: { app: ledger }, endpoints: [10.1.0.3], ports: [{ port: 5432, appProtocol: tcp }] }
---
apiVersion: merlon.io/v1alpha1
kind: Service
metadata: { name: outsider, namespace: shop }
spec: { selector: { app: outsider }, addresses: [10.9.0.2], endpoints: [10.1.0.90], ports: [{ port: 80 }] }
---
apiVersion: merlon.io/v1alpha1
kind: Service
metadata: { name: asleep, namespace: shop }
spec: { selector: { app: asleep }, addresses: [10.9.0.3], endpoints: [], ports: [{ port: 80 }] }
";

fn mesh() -> Arc<Mesh> {
    let resources = load_texts([("mesh.yaml", MESH)]).unwrap_or_else(|report| panic!("{report}"));
    Compiler::new().compile(&resources).unwrap()
}

fn at(address: &str) -> AddressState {
    mesh().address(address.parse().unwrap())
}

fn service(name: &str, port: u16, workload: Option<&str>) -> AddressState {
    AddressState::Service {
        service: name.parse().unwrap(),
        port,
        workload: workload.map(|address| address.parse().unwrap()),
        also: Vec::new(),
    }
}

#[test]
fn a_cluster_ip_is_its_service_on_the_services_ports_and_closed_on_others() {
    assert_eq!(at("10.9.0.1:80"), service("shop/orders", 80, None));
    assert_eq!(at("10.9.0.1:8080"), AddressState::Closed);
}

#[test]
fn a_pods_address_is_the_service_that_it_serves_on_that_port_with_this_pod_alone() {
    assert_eq!(
        at("10.1.0.2:8080"),
        service("shop/orders", 80, Some("10.1.0.2"))
    );
    assert_eq!(
        at("[fd00::1]:8080"),
        service("shop/orders", 80, Some("10.1.0.1"))
    );
    assert_eq!(
        at("10.1.0.3:5432"),
        service("bank/ledger", 5432, Some("10.1.0.3"))
    );
}

#[test]
fn a_meshed_pod_is_outside_on_no_port() {
    assert_eq!(at("10.1.0.2:22"), AddressState::Closed);
    assert_eq!(at("[::ffff:10.1.0.2]:22"), AddressState::Closed);
}

#[test]
fn a_service_with_unmeshed_pods_alone_is_outside_and_one_without_pods_is_not() {
    assert_eq!(at("10.9.0.2:80"), AddressState::Outside);
    assert_eq!(at("192.0.2.1:443"), AddressState::Outside);
    assert_eq!(at("10.9.0.3:80"), service("shop/asleep", 80, None));
}

#[test]
fn endpoints_are_the_ready_meshed_pods_each_with_its_own_port() {
    let mesh = mesh();
    let found = mesh.destination(&"shop/orders".parse().unwrap()).unwrap();
    let found: Destination = serde_json::from_slice(found.json()).unwrap();
    let [only] = found.endpoints.as_slice() else {
        panic!("{:?}", found.endpoints);
    };
    assert_eq!(only.dial(80), "10.1.0.1:8080".parse().unwrap());
    assert_eq!(only.address, "10.1.0.1:7561".parse().unwrap());
}

#[test]
fn a_state_contains_the_requested_addresses_and_the_services_behind_them() {
    let mesh = mesh();
    let identity = "spiffe://demo.test/ns/bank/sa/ledger".parse().unwrap();
    let ledger = mesh.proxy(&identity, None).unwrap();
    let addresses = ["10.9.0.1:80", "192.0.2.1:443"].map(|address| address.parse().unwrap());
    let wanted = Wanted {
        addresses: addresses.into(),
        ..Wanted::default()
    };
    let state = mesh.proxy_state(ledger, &wanted);
    let keys: Vec<_> = state
        .iter()
        .map(|resource| resource.key().to_string())
        .collect();
    assert_eq!(
        keys,
        [
            "Mesh mesh",
            "Workload bank/ledger-0",
            "Service bank/ledger",
            "Destination shop/orders",
            "Address 10.9.0.1:80",
            "Address 192.0.2.1:443",
        ]
    );
}

#[test]
fn only_workloads_of_permissive_namespaces_are_permissive() {
    let mesh = mesh();
    let permissive = |identity: &str| {
        let proxy = mesh.proxy(&identity.parse().unwrap(), None).unwrap();
        let state = mesh.proxy_state(proxy, &Wanted::default());
        let mut all = state.iter();
        let own = all.find(|resource| resource.key().name == proxy.name().to_string());
        let own: WorkloadState = serde_json::from_slice(own.unwrap().json()).unwrap();
        own.permissive
    };
    assert!(permissive("spiffe://demo.test/ns/bank/sa/ledger"));
    assert!(!permissive("spiffe://demo.test/ns/shop/sa/orders"));
}

#[test]
fn an_address_belongs_to_one_resource_at_most() {
    let twice = MESH.replace("addresses: [10.9.0.2]", "addresses: [10.1.0.2]");
    let report = load_texts([("mesh.yaml", twice)]).unwrap_err().to_string();
    assert!(
        report.contains("the Workload `shop/orders-2` already has the address `10.1.0.2`"),
        "{report}"
    );
    let unspecified = MESH.replace("addresses: [10.9.0.2]", "addresses: [0.0.0.0]");
    let report = load_texts([("mesh.yaml", unspecified)])
        .unwrap_err()
        .to_string();
    assert!(
        report.contains("clients cannot connect to `0.0.0.0`"),
        "{report}"
    );
}

#[test]
fn all_services_of_a_workloads_port_are_listed_and_the_first_by_name_comes_first() {
    let twice = "---
apiVersion: merlon.io/v1alpha1
kind: Service
metadata: { name: orders-headless, namespace: shop }
spec: { selector: { app: orders }, endpoints: [10.1.0.1], ports: [{ name: a, port: 8080 }, { name: b, port: 81, targetPort: 8080 }] }
---
apiVersion: merlon.io/v1alpha1
kind: Service
metadata: { name: admin, namespace: shop }
spec: { selector: { app: orders }, endpoints: [10.1.0.1], ports: [{ port: 9090 }] }
";
    let text = format!("{MESH}{twice}");
    let resources = load_texts([("mesh.yaml", text)]).unwrap_or_else(|report| panic!("{report}"));
    let mesh = Compiler::new().compile(&resources).unwrap();
    let found = mesh.address("10.1.0.1:8080".parse().unwrap());
    let expected = AddressState::Service {
        service: "shop/orders".parse().unwrap(),
        port: 80,
        workload: Some("10.1.0.1".parse().unwrap()),
        also: vec!["shop/orders-headless".parse().unwrap()],
    };
    assert_eq!(found, expected);
    // The address of a Service means this Service alone.
    let found = mesh.address("10.9.0.1:80".parse().unwrap());
    assert_eq!(found, service("shop/orders", 80, None));
}
