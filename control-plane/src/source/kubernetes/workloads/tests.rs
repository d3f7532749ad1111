use serde_json::{Value, json};

use super::*;

fn object<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

fn pod(containers: &Value) -> Pod {
    object(json!({
        "metadata": { "name": "orders-1", "namespace": "shop", "labels": { "app": "orders" } },
        "spec": { "serviceAccountName": "orders", "containers": containers },
        "status": { "phase": "Running", "podIP": "10.1.0.1", "podIPs": [{ "ip": "10.1.0.1" }, { "ip": "fd00::1" }] },
    }))
}

#[test]
fn a_pod_is_a_workload_if_it_contains_a_proxy() {
    let alone = pod(&json!([{ "name": "program" }]));
    assert_eq!(workload(&alone), None);
    let meshed = pod(&json!([{ "name": "program" }, { "name": "merlon-proxy" }]));
    let Some(Spec::Workload(found)) = workload(&meshed).map(|found| found.spec) else {
        panic!("a workload")
    };
    assert_eq!(found.service_account.as_str(), "orders");
    let addresses: Vec<String> = found.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.1.0.1", "fd00::1"]);
}

#[test]
fn a_pod_that_has_ended_or_uses_the_host_network_has_no_address() {
    let mut ended = pod(&json!([{ "name": "merlon-proxy" }]));
    let mut shared = ended.clone();
    ended.status.as_mut().unwrap().phase = Some("Succeeded".to_owned());
    assert_eq!(workload(&ended), None);
    shared.spec.as_mut().unwrap().host_network = Some(true);
    assert_eq!(addresses(&shared), Vec::<IpAddr>::new());
}

#[test]
fn a_service_has_the_named_ports_and_the_ready_addresses_of_its_pods() {
    let pods = [pod(&json!([
        { "name": "merlon-proxy" },
        { "name": "program", "ports": [{ "name": "http", "containerPort": 8080 }] },
    ]))];
    let made: Service = object(json!({
        "metadata": { "name": "orders", "namespace": "shop" },
        "spec": {
            "selector": { "app": "orders" },
            "clusterIP": "10.9.0.1", "clusterIPs": ["10.9.0.1"],
            "ports": [
                { "name": "http", "port": 80, "targetPort": "http", "protocol": "TCP" },
                { "name": "grpc-api", "port": 81, "targetPort": 9090 },
                { "name": "dns", "port": 53, "protocol": "UDP" },
            ],
        },
    }));
    let slice: EndpointSlice = object(json!({
        "metadata": {
            "name": "orders-x", "namespace": "shop",
            "labels": { "kubernetes.io/service-name": "orders" },
        },
        "addressType": "IPv4",
        "endpoints": [
            { "addresses": ["10.1.0.1"], "conditions": { "ready": true } },
            { "addresses": ["10.1.0.2"], "conditions": { "ready": false } },
            { "addresses": ["10.1.0.3"] },
        ],
    }));
    let ready = ready(&[Arc::new(slice)]);
    let ready = ready.get(&("shop".to_owned(), "orders".to_owned()));
    let found = service(&made, pods.iter(), ready).map(|found| found.spec);
    let Some(Spec::Service(found)) = found else {
        panic!("a service")
    };
    let ports: Vec<_> = found
        .ports
        .iter()
        .map(|port| (port.port, port.target_port, port.app_protocol))
        .collect();
    assert_eq!(
        ports,
        [
            (80, Some(8080), AppProtocol::Http),
            (81, Some(9090), AppProtocol::Grpc)
        ]
    );
    assert_eq!(found.addresses, ["10.9.0.1".parse::<IpAddr>().unwrap()]);
    let ready: Vec<String> = found
        .endpoints
        .iter()
        .flatten()
        .map(ToString::to_string)
        .collect();
    assert_eq!(ready, ["10.1.0.1", "10.1.0.3"]);
}

#[test]
fn terminating_endpoints_that_still_serve_are_used_when_none_is_ready() {
    let slice = |first: &Value| -> Arc<EndpointSlice> {
        let slice = object(json!({
            "metadata": {
                "name": "orders-x", "namespace": "shop",
                "labels": { "kubernetes.io/service-name": "orders" },
            },
            "addressType": "IPv4",
            "endpoints": [
                { "addresses": ["10.1.0.1"], "conditions": first },
                { "addresses": ["10.1.0.2"], "conditions": { "ready": false, "serving": false, "terminating": true } },
                { "addresses": ["10.1.0.3"], "conditions": { "ready": false, "serving": true, "terminating": true } },
            ],
        }));
        Arc::new(slice)
    };
    let all = |first: Value| {
        let ready = ready(&[slice(&first)]).into_values().next().unwrap();
        let addresses = endpoints(&ready, &[]).into_iter();
        addresses
            .map(|address| address.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(all(json!({ "ready": true })), ["10.1.0.1"]);
    assert_eq!(all(json!({ "ready": false })), ["10.1.0.3"]);
}

#[test]
fn pods_with_healthy_containers_are_used_when_none_is_ready() {
    let one = |address: &str, ready: &str, more: Value| -> Pod {
        let mut pod = json!({
            "metadata": { "name": "orders", "namespace": "shop", "labels": { "app": "orders" } },
            "spec": { "containers": [{ "name": "merlon-proxy" }] },
            "status": {
                "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }],
                "conditions": [
                    { "type": "Ready", "status": "False" },
                    { "type": "ContainersReady", "status": ready },
                ],
            },
        });
        for (key, value) in more.as_object().unwrap() {
            let part = pod[key].as_object_mut().unwrap();
            part.extend(value.as_object().unwrap().clone());
        }
        object(pod)
    };
    let pods = [
        one("10.1.0.1", "True", json!({})),
        one("10.1.0.2", "False", json!({})),
        one(
            "10.1.0.3",
            "True",
            json!({ "spec": { "readinessGates": [{ "conditionType": "own" }] } }),
        ),
        one(
            "10.1.0.4",
            "True",
            json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" } }),
        ),
    ];
    let made: Service = object(json!({
        "metadata": { "name": "orders", "namespace": "shop" },
        "spec": { "selector": { "app": "orders" }, "ports": [{ "port": 80 }] },
    }));
    let endpoints = |ready: Option<&str>, ending: Option<&str>| {
        let set = |one: Option<&str>| one.into_iter().map(|one| one.parse().unwrap()).collect();
        let called = ServiceEndpoints {
            ready: set(ready),
            ending: set(ending),
        };
        let found = service(&made, pods.iter(), Some(&called));
        let Some(Spec::Service(found)) = found.map(|found| found.spec) else {
            panic!("a service")
        };
        let endpoints = found.endpoints.unwrap();
        endpoints
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    assert_eq!(endpoints(None, None), ["10.1.0.1"]);
    assert_eq!(endpoints(None, Some("10.1.0.4")), ["10.1.0.1", "10.1.0.4"]);
    assert_eq!(endpoints(Some("10.1.0.9"), Some("10.1.0.4")), ["10.1.0.9"]);
}

#[test]
fn the_protocol_is_taken_from_app_protocol_the_ports_name_or_its_number() {
    for (declared, name, number, expected) in [
        (
            Some("kubernetes.io/h2c"),
            Some("grpc"),
            80,
            AppProtocol::H2c,
        ),
        (Some("grpc"), None, 80, AppProtocol::Grpc),
        (None, Some("grpc-api"), 80, AppProtocol::Grpc),
        (None, Some("postgres"), 80, AppProtocol::Tcp),
        (None, Some("tcp-metrics"), 80, AppProtocol::Tcp),
        (None, Some("web"), 80, AppProtocol::Http),
        (Some("kubernetes.io/ws"), None, 80, AppProtocol::Http),
        (
            Some("example.org/own"),
            Some("http"),
            5432,
            AppProtocol::Http,
        ),
        (None, Some("db"), 5432, AppProtocol::Tcp),
        (None, None, 6379, AppProtocol::Tcp),
        (None, None, 80, AppProtocol::Http),
    ] {
        let found = protocol(declared, name, [Some(8_080), Some(number)]);
        assert_eq!(found, expected, "{declared:?} {name:?} {number}");
    }
}
