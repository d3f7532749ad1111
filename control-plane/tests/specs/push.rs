//! Pushing state to proxies.

use merlon_api::discovery::DeltaDiscoveryRequest;
use merlon_config::snapshot::{Destination, Manifest, ResourceKind};
use merlon_test_support::limit;
use tonic::Code;

use crate::harness::{MESH, Member, Plane, Stream, content, follow, service, until_port};

async fn connected(plane: &Plane, name: &str, node: &str) -> (Member, Stream) {
    let member = plane.join(name).await;
    let stream = member.stream(plane, node).await;
    (member, stream)
}

#[tokio::test]
async fn a_proxy_that_acknowledges_is_listed_with_identity_version_and_certificate() {
    let plane = Plane::start().await;
    let (web, mut stream) = connected(&plane, "web", "web-1").await;
    let (manifest, response) = follow(&mut stream).await;
    let status = plane
        .until("web-1", |status| status["state"] == "acknowledged")
        .await;
    assert_eq!(status["identity"], "spiffe://demo.test/ns/shop/sa/web");
    assert_eq!(status["workload"], "shop/web");
    assert_eq!(
        status["snapshotVersion"],
        response.resources[0].version.as_str()
    );
    assert_eq!(status["certificateSerial"], web.tls.svid().serial.as_str());
    assert_eq!(status["resourcesSent"], manifest.entries.len() + 1);
}

#[tokio::test]
async fn a_rejection_is_listed_with_its_reason_and_the_enforced_version() {
    let plane = Plane::start().await;
    let (_web, mut stream) = connected(&plane, "web", "web-1").await;
    let (_, before) = follow(&mut stream).await;
    plane
        .until("web-1", |status| status["state"] == "acknowledged")
        .await;
    plane.write("orders.yaml", &service("orders", 7009));
    let changed = stream.next_of(ResourceKind::Destination).await;
    let destination: Destination = content(&changed);
    assert_eq!(destination.endpoints[0].address.port(), 7009);
    let manifest = stream.next_of(ResourceKind::Manifest).await;
    stream
        .answer(&manifest, Some("policy `a` does not compile"))
        .await;
    let status = plane
        .until("web-1", |status| status["state"] == "refused")
        .await;
    assert_eq!(status["reason"], "policy `a` does not compile");
    assert_eq!(
        status["snapshotVersion"],
        before.resources[0].version.as_str()
    );
    assert_eq!(plane.metric("merlon_push_refused_total").await, 1);
}

#[tokio::test]
async fn among_a_thousand_services_a_proxy_is_sent_its_own_and_nothing_when_another_changes() {
    let mut many = String::new();
    for n in 0..1_000_u16 {
        many.push_str(&service(&format!("s{n}"), 10_000 + n));
        many.push_str("---\n");
    }
    let plane = Plane::with(&[
        ("mesh.yaml", MESH.to_owned()),
        ("web.yaml", service("web", 7001)),
        ("orders.yaml", service("orders", 7002)),
        ("payments.yaml", service("payments", 7003)),
        ("many.yaml", many.clone()),
    ])
    .await;
    let (web, mut stream) = connected(&plane, "web", "web-1").await;
    let (manifest, _) = follow(&mut stream).await;
    assert_eq!(manifest.entries.len(), 5);
    let (_payments, mut other) = connected(&plane, "payments", "payments-1").await;
    follow(&mut other).await;

    // The change has been processed when the affected proxy has it.
    plane.write("payments.yaml", &service("payments", 7004));
    plane.write("many.yaml", &format!("# a line more\n{many}"));
    other
        .subscribe(ResourceKind::Destination, &["shop/payments"])
        .await;
    until_port(&mut other, 7004).await;
    stream.expect_nothing_sent().await;
    let sent = plane.status("web-1").await["resourcesSent"].clone();
    assert_eq!(sent, 6, "the manifest and five resources, at the beginning");

    // It reconnects and reports its state.
    drop(stream);
    plane
        .until("web-1", |status| status["state"] == "disconnected")
        .await;
    let mut stream = web.stream(&plane, "web-1").await;
    come_back(&stream, &manifest).await;
    stream.expect_nothing_sent().await;
    let status = plane
        .until("web-1", |status| status["state"] == "acknowledged")
        .await;
    assert_eq!(status["resourcesSent"], 0);
}

/// Subscribes to every resource in a manifest and reports its version, and to the manifest last.
async fn come_back(stream: &Stream, manifest: &Manifest) {
    for kind in ResourceKind::ALL {
        let held: Vec<_> = manifest
            .entries
            .iter()
            .filter(|entry| entry.key.kind == kind)
            .collect();
        if held.is_empty() {
            continue;
        }
        let names: Vec<_> = held.iter().map(|entry| entry.key.name.as_str()).collect();
        let has = held
            .iter()
            .map(|e| (e.key.name.clone(), e.version.to_string()));
        stream
            .send(DeltaDiscoveryRequest {
                initial_resource_versions: has.collect(),
                ..stream.subscription(kind, &names)
            })
            .await;
    }
    let version = merlon_config::snapshot::Version::of(&serde_json::to_vec(manifest).unwrap());
    stream
        .send(DeltaDiscoveryRequest {
            initial_resource_versions: [(stream.id.clone(), version.to_string())].into(),
            ..stream.subscription(ResourceKind::Manifest, &[&stream.id])
        })
        .await;
}

#[tokio::test]
async fn a_restarted_control_plane_sends_only_what_has_changed() {
    let plane = Plane::start().await;
    let (web, mut stream) = connected(&plane, "web", "web-1").await;
    let (manifest, _) = follow(&mut stream).await;
    let plane = plane.restart().await;
    let mut stream = web.stream(&plane, "web-1").await;
    come_back(&stream, &manifest).await;
    stream.expect_nothing_sent().await;
    assert_eq!(
        plane
            .metric("merlon_push_resources_sent_total{kind=\"destination\"}")
            .await,
        0
    );
}

#[tokio::test]
async fn a_destination_is_sent_on_demand_and_a_missing_one_when_it_exists() {
    let plane = Plane::start().await;
    let (_web, mut stream) = connected(&plane, "web", "web-1").await;
    follow(&mut stream).await;
    stream
        .subscribe(ResourceKind::Destination, &["shop/payments"])
        .await;
    let response = stream.next_of(ResourceKind::Destination).await;
    assert_eq!(response.resources[0].name, "shop/payments");
    let manifest: Manifest = content(&stream.next_of(ResourceKind::Manifest).await);
    assert!(
        manifest
            .entries
            .iter()
            .any(|entry| entry.key.name == "shop/payments")
    );
    stream
        .subscribe(ResourceKind::Destination, &["shop/stock"])
        .await;
    let response = stream.next_of(ResourceKind::Destination).await;
    assert_eq!(response.removed_resources, ["shop/stock"]);
    plane.write("stock.yaml", &service("stock", 7008));
    let response = stream.next_of(ResourceKind::Destination).await;
    assert_eq!(response.resources[0].name, "shop/stock");
}

#[tokio::test]
async fn an_invalid_file_changes_nothing_and_is_reported_until_it_is_fixed() {
    let plane = Plane::start().await;
    let (_web, mut stream) = connected(&plane, "web", "web-1").await;
    follow(&mut stream).await;
    plane.write(
        "orders.yaml",
        &service("orders", 7009).replace("selector", "selectors"),
    );
    let problem = plane.problem().await;
    assert_eq!(
        (&problem["file"], &problem["line"]),
        (&"orders.yaml".into(), &11.into()),
        "{problem}"
    );
    stream.expect_nothing_sent().await;
    assert_eq!(
        plane
            .metric("merlon_config_loads_total{result=\"refused\"}")
            .await,
        1
    );
    plane.write("orders.yaml", &service("orders", 7009));
    let mended: Destination = content(&stream.next_of(ResourceKind::Destination).await);
    assert_eq!(mended.endpoints[0].address.port(), 7009);
    assert_eq!(
        plane.get("/v1/status").await["source"]["problems"],
        serde_json::json!([])
    );
}

#[tokio::test]
async fn a_proxy_that_does_not_read_delays_no_other() {
    const CHANGES: u16 = 20;
    let plane = Plane::start().await;
    let web = plane.join("web").await;
    let mut slow = web.narrow_stream(&plane, "web-1", 1_024).await;
    // Each change of `orders` is sent to it, because it calls `orders`.
    follow(&mut slow).await;
    let (_orders, mut other) = connected(&plane, "orders", "orders-1").await;
    follow(&mut other).await;
    other
        .subscribe(ResourceKind::Destination, &["shop/orders"])
        .await;
    let sent = async || {
        let status = plane.status("web-1").await;
        status["resourcesSentByKind"]["destination"]
            .as_u64()
            .unwrap()
    };
    let before = sent().await;
    for port in 7_101..=7_100 + CHANGES {
        plane.write("orders.yaml", &service("orders", port));
        until_port(&mut other, port).await;
    }
    // It is behind: nothing more was sent to it, although each change arrived at the other one.
    let behind = sent().await - before;
    assert!(
        behind < u64::from(CHANGES) / 2,
        "{behind} changes were sent"
    );
    // It gets the last change as soon as it reads, and not every one between.
    let received = until_port(&mut slow, 7_100 + CHANGES).await;
    assert!(
        received < CHANGES.into(),
        "{received} changes were received"
    );
}

#[tokio::test]
async fn a_connection_has_a_limited_number_of_streams_and_the_next_one_waits() {
    let plane = Plane::with_limits(|limits| limits.proxies.streams = 2).await;
    let web = plane.join("web").await;
    let channel = web.channel(&plane).await;
    let open = |node: &'static str| {
        let (channel, id) = (channel.clone(), web.tls.svid().id.clone());
        tokio::spawn(async move {
            let mut stream = Stream::open(channel, id, node).await.unwrap();
            stream.subscribe_manifest().await;
            stream.next_of(ResourceKind::Manifest).await;
            stream
        })
    };
    let first = open("web-1").await.unwrap();
    let mut second = open("web-2").await.unwrap();
    let third = open("web-3");
    // Many times what a stream takes to open.
    for _ in 0..50 {
        second.expect_nothing_sent().await;
    }
    assert!(!third.is_finished());
    assert_eq!(plane.status("web-3").await, serde_json::Value::Null);
    drop(first);
    let mut third = limit("a free place", third).await.unwrap();
    third.expect_nothing_sent().await;
}

#[tokio::test]
async fn invalid_messages_end_the_stream_with_a_reason() {
    let plane = Plane::start().await;
    let web = plane.join("web").await;
    let says = async |change: &dyn Fn(&mut DeltaDiscoveryRequest), code: Code, text: &str| {
        let mut stream = web.stream(&plane, "web-1").await;
        let mut request = stream.subscription(ResourceKind::Manifest, &[&stream.id]);
        change(&mut request);
        stream.send(request).await;
        let status = stream.next().await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(text), "{status}");
    };
    says(&|m| m.node = None, Code::InvalidArgument, "`node`").await;
    says(
        &|m| m.type_url = "x/y".into(),
        Code::InvalidArgument,
        "`x/y` is not a resource type",
    )
    .await;
    says(
        &|m| m.resource_names_subscribe = vec!["*".into()],
        Code::InvalidArgument,
        "wildcard",
    )
    .await;
    let another = "spiffe://demo.test/ns/shop/sa/orders";
    says(
        &|m| m.resource_names_subscribe = vec![another.into()],
        Code::PermissionDenied,
        "is not the identity",
    )
    .await;
    says(
        &|m| m.resource_names_subscribe = vec!["é".repeat(200)],
        Code::InvalidArgument,
        "visible",
    )
    .await;
    let big = |m: &mut DeltaDiscoveryRequest| m.response_nonce = "x".repeat(2 << 20);
    says(&big, Code::OutOfRange, "message length too large").await;
    assert_eq!(
        plane
            .metric("merlon_requests_refused_total{service=\"push\"}")
            .await,
        6
    );
}

#[tokio::test]
async fn the_stream_of_a_removed_workload_ends() {
    let plane = Plane::start().await;
    let (_payments, mut stream) = connected(&plane, "payments", "payments-1").await;
    follow(&mut stream).await;
    plane.remove("payments.yaml");
    let status = stream.next().await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(
        status.message().contains("no Workload and no Gateway"),
        "{status}"
    );
}

#[tokio::test]
async fn replicas_of_one_identity_are_distinguished_by_their_workload_name() {
    let replica = |name: &str, port: u16, listen: u16| {
        format!(
            "apiVersion: merlon.io/v1alpha1\nkind: Workload\n\
             metadata: {{ name: {name}, namespace: shop, labels: {{ app: web }} }}\n\
             spec:\n  serviceAccount: web\n  meshAddress: \"127.0.0.1:{port}\"\n  \
             outbound: [{{ listen: \"127.0.0.1:{listen}\", service: shop/orders, port: 80 }}]\n"
        )
    };
    let plane = Plane::with(&[
        ("mesh.yaml", MESH.to_owned()),
        ("orders.yaml", service("orders", 7002)),
        ("one.yaml", replica("web-a", 7001, 8001)),
        ("two.yaml", replica("web-b", 7004, 8002)),
    ])
    .await;
    let web = plane.join("web").await;
    let mut nameless = web.stream(&plane, "n1").await;
    nameless.subscribe_manifest().await;
    let status = nameless.next().await.unwrap_err();
    assert!(status.message().contains("--workload web-a"), "{status}");
    let mut named = web.stream(&plane, "n2").await;
    let mut request = named.subscription(ResourceKind::Manifest, &[&named.id]);
    request.node = Some(merlon_api::node("n2", Some("web-b"), "0.1.0"));
    named.send(request).await;
    let manifest: Manifest = content(&named.next_of(ResourceKind::Manifest).await);
    assert!(
        manifest
            .entries
            .iter()
            .any(|entry| entry.key.name == "shop/web-b")
    );
}
