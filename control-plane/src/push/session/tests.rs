//! The protocol of one stream, message by message.

use std::sync::Arc;

use merlon_api::{
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Status as Refusal},
    node,
};
use merlon_compile::{Compiler, StateResource};
use merlon_config::{
    load::load_texts,
    snapshot::{Manifest, ResourceKind, TrustBundle, Version},
};
use tonic::Code;

use super::{ProxyAck, Session};
use crate::state::snapshot::Snapshot;

const WEB: &str = "spiffe://demo.test/ns/shop/sa/web";

/// `web` calls `orders` over its own listener; `others` exist too.
fn snapshot(others: &[&str]) -> Snapshot {
    let mut text = String::from(
        r#"
apiVersion: merlon.io/v1alpha1
kind: MeshConfig
metadata: { name: mesh, namespace: merlon-system }
spec: { trustDomain: demo.test }
---
apiVersion: merlon.io/v1alpha1
kind: Workload
metadata: { name: web, namespace: shop, labels: { app: web } }
spec:
  serviceAccount: web
  meshAddress: "127.0.0.1:7001"
  outbound: [{ listen: "127.0.0.1:8001", service: shop/orders, port: 80 }]
"#,
    );
    for name in ["web", "orders"].iter().chain(others) {
        text.push_str(&service(name));
    }
    for (at, name) in ["orders"].iter().chain(others).enumerate() {
        text.push_str(&workload(name, &format!("127.0.0.1:{}", 7002 + at)));
    }
    let resources = load_texts([("mesh.yaml", text)]).unwrap();
    let mesh = Compiler::new().compile(&resources).unwrap();
    let bundle = TrustBundle {
        trust_domain: "demo.test".parse().unwrap(),
        roots: vec!["root".into()],
    };
    Snapshot {
        mesh,
        bundle: Some(Arc::new(StateResource::trust_bundle(&bundle))),
        certificates: Arc::default(),
        secrets: Arc::default(),
        number: 1,
    }
}

fn service(name: &str) -> String {
    format!(
        "---\napiVersion: merlon.io/v1alpha1\nkind: Service\nmetadata: {{ name: {name}, namespace: shop }}\n\
         spec: {{ selector: {{ app: {name} }}, ports: [{{ port: 80 }}] }}\n"
    )
}

fn workload(name: &str, address: &str) -> String {
    format!(
        "---\napiVersion: merlon.io/v1alpha1\nkind: Workload\n\
         metadata: {{ name: {name}, namespace: shop, labels: {{ app: {name} }} }}\n\
         spec: {{ serviceAccount: {name}, meshAddress: \"{address}\" }}\n"
    )
}

fn session() -> Session {
    Session::new(WEB.parse().unwrap())
}

fn subscribe(kind: ResourceKind, names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        node: Some(node("web-1", None, "0.1.0")),
        type_url: kind.type_url().to_owned(),
        resource_names_subscribe: names.iter().map(ToString::to_string).collect(),
        ..DeltaDiscoveryRequest::default()
    }
}

fn having(mut request: DeltaDiscoveryRequest, versions: &[(&str, &str)]) -> DeltaDiscoveryRequest {
    for (name, version) in versions {
        request
            .initial_resource_versions
            .insert(name.to_string(), version.to_string());
    }
    request
}

/// A proxy's reaction to the first responses: it reads the manifest and subscribes to every resource in it.
fn follow(session: &mut Session, snapshot: &Snapshot) -> (Manifest, Vec<DeltaDiscoveryResponse>) {
    session
        .receive(&subscribe(ResourceKind::Manifest, &[WEB]), snapshot)
        .unwrap();
    let responses = session.due();
    let manifest = manifest_of(&responses);
    let mut all = Vec::new();
    for kind in ResourceKind::ALL {
        let names: Vec<_> = manifest
            .entries
            .iter()
            .filter(|e| e.key.kind == kind)
            .collect();
        let names: Vec<_> = names.iter().map(|entry| entry.key.name.as_str()).collect();
        if !names.is_empty() {
            session.receive(&subscribe(kind, &names), snapshot).unwrap();
            all.extend(session.due());
        }
    }
    (manifest, all)
}

fn manifest_of(responses: &[DeltaDiscoveryResponse]) -> Manifest {
    let last = responses.last().expect("a response");
    assert_eq!(
        last.type_url,
        ResourceKind::Manifest.type_url(),
        "the manifest comes last"
    );
    let any = last.resources[0].resource.as_ref().unwrap();
    serde_json::from_slice(&any.value).unwrap()
}

fn names(responses: &[DeltaDiscoveryResponse]) -> Vec<String> {
    let resources = responses.iter().flat_map(|response| &response.resources);
    resources.map(|resource| resource.name.clone()).collect()
}

fn answer(nonce: &str, refusal: Option<&str>) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: ResourceKind::Manifest.type_url().to_owned(),
        response_nonce: nonce.to_owned(),
        error_detail: refusal.map(|message| Refusal {
            code: 3,
            message: message.to_owned(),
            details: Vec::new(),
        }),
        ..DeltaDiscoveryRequest::default()
    }
}

#[test]
fn a_proxy_receives_its_workload_its_service_and_the_destinations_of_its_listeners() {
    let (manifest, responses) = follow(&mut session(), &snapshot(&["payments", "stock"]));
    let keys: Vec<_> = manifest
        .entries
        .iter()
        .map(|entry| entry.key.to_string())
        .collect();
    assert_eq!(
        keys,
        [
            "Mesh mesh",
            "TrustBundle demo.test",
            "Workload shop/web",
            "Service shop/web",
            "Destination shop/orders",
        ]
    );
    assert_eq!(
        names(&responses),
        ["mesh", "demo.test", "shop/web", "shop/web", "shop/orders"]
    );
}

#[test]
fn every_resource_has_the_hash_that_the_manifest_names() {
    let (manifest, responses) = follow(&mut session(), &snapshot(&[]));
    let resources = responses
        .into_iter()
        .flat_map(|response| response.resources);
    for resource in resources {
        let opened = merlon_api::open_resource(resource).unwrap();
        let mut entries = manifest.entries.iter();
        assert!(entries.any(|entry| entry.key == opened.key && entry.version == opened.version));
    }
}

#[test]
fn an_acknowledgement_has_the_version_of_the_manifest() {
    let (snapshot, mut session) = (snapshot(&[]), session());
    session
        .receive(&subscribe(ResourceKind::Manifest, &[WEB]), &snapshot)
        .unwrap();
    let sent = session.due();
    let version = Version::from(sent[0].resources[0].version.clone());
    let ack = session
        .receive(&answer(&sent[0].nonce, None), &snapshot)
        .unwrap();
    assert_eq!(ack, Some(ProxyAck::Acknowledged(version)));
    assert_eq!(
        session.receive(&answer("999", None), &snapshot).unwrap(),
        None,
        "a stale nonce"
    );
}

#[test]
fn a_rejection_has_its_reason_and_the_same_state_is_not_sent_again() {
    let (snapshot, mut session) = (snapshot(&[]), session());
    session
        .receive(&subscribe(ResourceKind::Manifest, &[WEB]), &snapshot)
        .unwrap();
    let sent = session.due();
    let ack = session
        .receive(&answer(&sent[0].nonce, Some("it is broken")), &snapshot)
        .unwrap();
    let Some(ProxyAck::Refused(Some(version), reason)) = ack else {
        panic!("{ack:?}")
    };
    assert_eq!(
        (version.as_str(), reason.as_str()),
        (sent[0].resources[0].version.as_str(), "it is broken")
    );
    assert!(session.due().is_empty());
}

#[test]
fn a_change_to_a_service_that_a_proxy_does_not_use_sends_it_nothing() {
    let mut session = session();
    follow(&mut session, &snapshot(&["payments"]));
    session.refresh(&snapshot(&["payments", "stock"])).unwrap();
    assert!(session.due().is_empty());
}

#[test]
fn a_change_sends_what_changed_and_the_manifest_and_nothing_else() {
    let mut session = session();
    let mut snapshot = snapshot(&[]);
    follow(&mut session, &snapshot);
    let bundle = TrustBundle {
        trust_domain: "demo.test".parse().unwrap(),
        roots: vec!["root".into(), "next".into()],
    };
    snapshot.bundle = Some(Arc::new(StateResource::trust_bundle(&bundle)));
    session.refresh(&snapshot).unwrap();
    assert_eq!(names(&session.due()), ["demo.test", WEB]);
}

#[test]
fn a_proxy_that_reconnects_with_the_current_state_is_sent_nothing_and_counts_as_acknowledged() {
    let snapshot = snapshot(&["payments"]);
    let mut first = session();
    follow(&mut first, &snapshot);
    first
        .receive(
            &subscribe(ResourceKind::Destination, &["shop/payments"]),
            &snapshot,
        )
        .unwrap();
    let manifest = first.due();
    let version = manifest.last().unwrap().resources[0].version.clone();
    let entries = manifest_of(&manifest).entries;

    let mut second = session();
    let mut sent = Vec::new();
    for kind in ResourceKind::ALL {
        let held: Vec<_> = entries
            .iter()
            .filter(|entry| entry.key.kind == kind)
            .collect();
        if held.is_empty() {
            continue;
        }
        let names: Vec<_> = held.iter().map(|entry| entry.key.name.as_str()).collect();
        let has: Vec<_> = held
            .iter()
            .map(|e| (e.key.name.as_str(), e.version.as_str()))
            .collect();
        second
            .receive(&having(subscribe(kind, &names), &has), &snapshot)
            .unwrap();
        sent.extend(second.due());
    }
    let request = having(
        subscribe(ResourceKind::Manifest, &[WEB]),
        &[(WEB, &version)],
    );
    let ack = second.receive(&request, &snapshot).unwrap();
    sent.extend(second.due());
    assert!(sent.is_empty(), "{sent:?}");
    assert_eq!(ack, Some(ProxyAck::Acknowledged(Version::from(version))));
}

#[test]
fn a_manifest_waits_for_a_reconnected_proxy_to_name_its_destinations() {
    let snapshot = snapshot(&["payments"]);
    let mut session = session();
    let request = having(
        subscribe(ResourceKind::Manifest, &[WEB]),
        &[(WEB, "what it had")],
    );
    session.receive(&request, &snapshot).unwrap();
    assert!(session.is_held() && session.due().is_empty());
    session
        .receive(
            &subscribe(ResourceKind::Destination, &["shop/payments"]),
            &snapshot,
        )
        .unwrap();
    let manifest = manifest_of(&session.due());
    assert!(
        manifest
            .entries
            .iter()
            .any(|entry| entry.key.name == "shop/payments")
    );
}

#[test]
fn an_on_demand_destination_is_part_of_the_state_until_it_is_unsubscribed() {
    let snapshot = snapshot(&["payments"]);
    let mut session = session();
    follow(&mut session, &snapshot);
    session
        .receive(
            &subscribe(ResourceKind::Destination, &["shop/payments"]),
            &snapshot,
        )
        .unwrap();
    assert_eq!(names(&session.due()), ["shop/payments", WEB]);
    let mut give_up = subscribe(ResourceKind::Destination, &[]);
    give_up.resource_names_unsubscribe = vec!["shop/payments".into()];
    session.receive(&give_up, &snapshot).unwrap();
    let manifest = manifest_of(&session.due());
    assert!(
        manifest
            .entries
            .iter()
            .all(|entry| entry.key.name != "shop/payments")
    );
}

/// `snapshot`, and `payments` in a pod behind a cluster address, or that address without a service.
fn snapshot_with_addresses(of_payments: bool) -> Snapshot {
    let mut text = String::from(
        "apiVersion: merlon.io/v1alpha1\nkind: MeshConfig\nmetadata: { name: mesh, namespace: merlon-system }\n\
         spec: { trustDomain: demo.test }\n",
    );
    text.push_str(&workload("web", "127.0.0.1:7001"));
    if of_payments {
        text.push_str(
            "---\napiVersion: merlon.io/v1alpha1\nkind: Workload\n\
             metadata: { name: payments-1, namespace: shop, labels: { app: payments } }\n\
             spec: { serviceAccount: payments, addresses: [10.1.0.1] }\n\
             ---\napiVersion: merlon.io/v1alpha1\nkind: Service\nmetadata: { name: payments, namespace: shop }\n\
             spec: { selector: { app: payments }, addresses: [10.9.0.1], ports: [{ port: 80 }] }\n",
        );
    }
    let resources = load_texts([("mesh.yaml", text)]).unwrap();
    Snapshot {
        mesh: Compiler::new().compile(&resources).unwrap(),
        bundle: None,
        certificates: Arc::default(),
        secrets: Arc::default(),
        number: 1,
    }
}

#[test]
fn an_address_is_sent_with_the_service_behind_it_and_sent_again_when_that_changes() {
    let (with, without) = (
        snapshot_with_addresses(true),
        snapshot_with_addresses(false),
    );
    let mut session = session();
    let start = subscribe(ResourceKind::Manifest, &[WEB]);
    session.receive(&start, &with).unwrap();
    session.due();
    let ask = subscribe(ResourceKind::Address, &["10.9.0.1:80", "192.0.2.1:443"]);
    session.receive(&ask, &with).unwrap();
    let due = session.due();
    assert_eq!(names(&due), ["10.9.0.1:80", "192.0.2.1:443", WEB]);
    let named = |responses: &[DeltaDiscoveryResponse]| {
        let entries = manifest_of(responses).entries;
        let names = entries.into_iter().map(|entry| entry.key.name);
        names.collect::<Vec<_>>()
    };
    assert!(named(&due).contains(&"shop/payments".to_owned()));

    session.refresh(&without).unwrap();
    let due = session.due();
    assert_eq!(
        names(&due),
        ["10.9.0.1:80", WEB],
        "the other is outside as before"
    );
    assert!(!named(&due).contains(&"shop/payments".to_owned()));
}

#[test]
fn the_destination_of_an_address_is_removed_with_the_address() {
    let snapshot = snapshot_with_addresses(true);
    let mut session = session();
    for (kind, name) in [
        (ResourceKind::Manifest, WEB),
        (ResourceKind::Address, "10.9.0.1:80"),
        // The proxy does this when the manifest names it.
        (ResourceKind::Destination, "shop/payments"),
    ] {
        session
            .receive(&subscribe(kind, &[name]), &snapshot)
            .unwrap();
    }
    session.due();
    let mut give_up = subscribe(ResourceKind::Address, &[]);
    give_up.resource_names_unsubscribe = vec!["10.9.0.1:80".into()];
    session.receive(&give_up, &snapshot).unwrap();
    let manifest = manifest_of(&session.due());
    let mut entries = manifest.entries.iter();
    assert!(entries.all(|entry| entry.key.name != "shop/payments"));
}

#[test]
fn an_invalid_address_is_rejected() {
    let snapshot = snapshot_with_addresses(true);
    for wrong in ["10.9.0.1", "payments:80", "10.9.0.1:80 ", "fd00::1:80"] {
        let mut session = session();
        let refused = session.receive(&subscribe(ResourceKind::Address, &[wrong]), &snapshot);
        assert_eq!(
            refused.unwrap_err().code(),
            Code::InvalidArgument,
            "{wrong}"
        );
    }
}

#[test]
fn a_missing_destination_is_reported_as_removed_and_sent_when_it_exists() {
    let mut session = session();
    follow(&mut session, &snapshot(&[]));
    session
        .receive(
            &subscribe(ResourceKind::Destination, &["shop/payments"]),
            &snapshot(&[]),
        )
        .unwrap();
    let due = session.due();
    assert_eq!(due.len(), 1, "no new manifest");
    assert_eq!(due[0].removed_resources, ["shop/payments"]);
    session.refresh(&snapshot(&["payments"])).unwrap();
    assert_eq!(names(&session.due()), ["shop/payments", WEB]);
}

#[test]
fn a_proxy_cannot_see_the_state_of_another_workload() {
    let snapshot = snapshot(&["payments"]);
    let mut session = session();
    follow(&mut session, &snapshot);
    session
        .receive(
            &subscribe(ResourceKind::Service, &["shop/payments"]),
            &snapshot,
        )
        .unwrap();
    assert_eq!(session.due()[0].removed_resources, ["shop/payments"]);
    session
        .receive(
            &subscribe(ResourceKind::Workload, &["shop/payments"]),
            &snapshot,
        )
        .unwrap();
    assert_eq!(session.due()[0].removed_resources, ["shop/payments"]);
}

#[test]
fn protocol_violations_are_rejected_with_their_reason() {
    let snapshot = snapshot(&[]);
    let good = || subscribe(ResourceKind::Manifest, &[WEB]);
    let refused = |request: DeltaDiscoveryRequest| {
        let status = session().receive(&request, &snapshot).unwrap_err();
        (status.code(), status.message().to_owned())
    };
    let says = |request, code, text: &str| {
        let (found, message) = refused(request);
        assert_eq!(found, code, "{message}");
        assert!(message.contains(text), "{message}");
    };
    says(
        DeltaDiscoveryRequest {
            node: None,
            ..good()
        },
        Code::InvalidArgument,
        "no `node`",
    );
    let nameless = Some(node("", None, ""));
    says(
        DeltaDiscoveryRequest {
            node: nameless,
            ..good()
        },
        Code::InvalidArgument,
        "`node.id`",
    );
    let foreign = "type.googleapis.com/envoy.config.cluster.v3.Cluster".to_owned();
    says(
        DeltaDiscoveryRequest {
            type_url: foreign,
            ..good()
        },
        Code::InvalidArgument,
        "envoy.config.cluster.v3.Cluster",
    );
    says(
        subscribe(ResourceKind::Manifest, &["*"]),
        Code::InvalidArgument,
        "wildcard",
    );
    says(
        subscribe(ResourceKind::Destination, &[]),
        Code::InvalidArgument,
        "wildcard",
    );
    says(
        subscribe(ResourceKind::Destination, &[&"x".repeat(254)]),
        Code::InvalidArgument,
        "253 bytes",
    );
    says(
        subscribe(ResourceKind::Destination, &["shop/\u{7}"]),
        Code::InvalidArgument,
        "visible",
    );
    let another = "spiffe://demo.test/ns/shop/sa/orders";
    says(
        subscribe(ResourceKind::Manifest, &[another]),
        Code::PermissionDenied,
        another,
    );
    let many: Vec<_> = (0..1_001).map(|n| format!("shop/s{n}")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    says(
        subscribe(ResourceKind::Destination, &many),
        Code::ResourceExhausted,
        "1000 names",
    );
}

#[test]
fn the_names_of_a_stream_are_counted_over_all_its_messages_and_kinds() {
    let snapshot = snapshot(&[]);
    let mut session = session();
    let names = |from: usize, until: usize| -> Vec<String> {
        (from..until).map(|n| format!("shop/s{n}")).collect()
    };
    let mut subscribe_to = |kind, names: &[String]| {
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        session.receive(&subscribe(kind, &names), &snapshot)
    };
    subscribe_to(ResourceKind::Destination, &names(0, 600)).unwrap();
    // The same names again take no place.
    subscribe_to(ResourceKind::Destination, &names(0, 600)).unwrap();
    subscribe_to(ResourceKind::Service, &names(0, 400)).unwrap();
    let status = subscribe_to(ResourceKind::Service, &names(400, 401)).unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(
        status.message().contains("1000 names, not to 1001"),
        "{status}"
    );
}

#[test]
fn an_identity_that_no_resource_has_gets_no_state() {
    let mut session = Session::new("spiffe://demo.test/ns/shop/sa/missing".parse().unwrap());
    let status = session
        .receive(&subscribe(ResourceKind::Mesh, &["mesh"]), &snapshot(&[]))
        .unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("sa/missing"), "{status}");
}
