//! Connections to addresses that are not of the mesh, not of it yet, or excluded.

use http::StatusCode;
use merlon_tests::{
    pods::{Node, Pod, are_possible},
    until,
};

use super::{BATCH, ORDERS, WEB, at, caller, cluster, documents};

#[tokio::test]
async fn connections_to_destinations_outside_are_passed_on_and_logged_or_refused() {
    if !are_possible() {
        return;
    }
    let node = Node::start("", &documents()).await;
    let web = node.meshed("web", WEB, &[]).await;
    let unmeshed = node.pod("unmeshed", 21);
    let program = unmeshed.http(8080);
    web.get(unmeshed.at(8080), "unmeshed", "/x")
        .await
        .unwrap()
        .is_ok();
    let line = web.log_where("dst", &unmeshed.at(8080).to_string()).await;
    line.has("direction", "outbound").has("protocol", "tcp");

    node.edit(
        "trustDomain: mesh.test",
        "trustDomain: mesh.test, outbound: deny",
    );
    until("it is refused", async || {
        web.get(unmeshed.at(8080), "unmeshed", "/x").await.is_err()
    })
    .await;
    web.log_where("reason", "egress.denied").await;
    let seen = program.seen().len();
    assert!(web.get(unmeshed.at(8080), "unmeshed", "/x").await.is_err());
    assert_eq!(program.seen().len(), seen);
}

#[tokio::test]
async fn a_service_without_endpoints_is_not_treated_as_outside() {
    if !are_possible() {
        return;
    }
    let node = Node::start("", &documents()).await;
    let web = node.meshed("web", WEB, &[]).await;
    let answer = web.get(at("10.90.0.2:80"), "asleep", "/").await.unwrap();
    answer.is_problem(StatusCode::SERVICE_UNAVAILABLE, "upstream.no_endpoint");
    // A port of a meshed pod that no Service has is not outside either.
    let orders = node.meshed("orders", ORDERS, &[]).await;
    let program = orders.http(9999);
    assert!(web.get(orders.at(9999), "orders", "/").await.is_err());
    assert!(program.seen().is_empty());
}

#[tokio::test]
async fn without_a_control_plane_no_new_address_is_treated_as_outside() {
    if !are_possible() {
        return;
    }
    let node = Node::start("", &documents()).await;
    let web = node.meshed("web", WEB, &[]).await;
    let orders = node.meshed("orders", ORDERS, &[]).await;
    let program = orders.http(8080);
    let (known, new) = (node.pod("known", 21), node.pod("new", 22));
    let (_known_program, new_program) = (known.http(8080), new.http(8080));
    web.get(known.at(8080), "known", "/x")
        .await
        .unwrap()
        .is_ok();
    web.get(cluster(80), "orders", "/open/x")
        .await
        .unwrap()
        .is_ok();

    node.kill_control_plane();
    web.get(known.at(8080), "known", "/x")
        .await
        .unwrap()
        .is_ok();
    web.get(cluster(80), "orders", "/open/x")
        .await
        .unwrap()
        .is_ok();
    for to in [new.at(8080), orders.at_v6(8080)] {
        assert!(web.get(to, "new", "/open/x").await.is_err(), "{to}");
    }
    assert!(new_program.seen().is_empty());
    assert_eq!(program.seen().len(), 2);
    web.log_where("reason", "config.unavailable").await;
}

#[tokio::test]
async fn an_address_that_becomes_a_meshed_pods_during_an_outage_is_called_in_plain_and_refused() {
    if !are_possible() {
        return;
    }
    const NUMBER: u8 = 21;
    let node = Node::start("", &documents()).await;
    let web = node.meshed("web", WEB, &[]).await;
    let batch = node.meshed("batch", BATCH, &[]).await;
    let outside = node.pod("outside", NUMBER);
    let program = outside.http(8080);
    let address = outside.at(8080);
    web.get(address, "outside", "/open/x")
        .await
        .unwrap()
        .is_ok();
    assert_eq!(program.seen().len(), 1);

    // `web` loses its control plane. Meanwhile the address becomes that of `orders`.
    web.lose_control_plane().await;
    drop((program, outside));
    node.edit(&Pod::addresses(ORDERS), &Pod::addresses(NUMBER));
    let orders = node.meshed("orders", NUMBER, &[]).await;
    let program = orders.http(8080);
    until("those with a control plane know the new pod", async || {
        let reply = batch.get(address, "orders", "/open/x").await;
        reply
            .is_ok_and(|reply| reply.status == StatusCode::OK && caller(&reply) == batch.identity())
    })
    .await;
    assert_eq!(program.seen().len(), 1);

    let wire = node.capture();
    let before = orders.refused_handshakes().await;
    let answer = web.get(address, "orders", "/open/canary-in-plain").await;
    assert!(answer.is_err(), "{answer:?}");
    until("the pod's sidecar refused it", async || {
        orders.refused_handshakes().await == before + 1
    })
    .await;
    assert_eq!(program.seen().len(), 1);
    wire.saw("canary-in-plain").await;
}

#[tokio::test]
async fn excluded_ports_and_addresses_bypass_the_proxy() {
    if !are_possible() {
        return;
    }
    let node = Node::start(", outbound: deny", &documents()).await;
    let rules = [
        "--exclude-outbound-ports",
        "9000-9010",
        "--exclude-outbound-ip-ranges",
        "10.200.0.22/32",
        "--exclude-inbound-ports",
        "8081",
    ];
    let web = node.meshed("web", WEB, &rules).await;
    let (one, other) = (node.pod("one", 21), node.pod("other", 22));
    let programs = [
        one.http(9005),
        one.http(8080),
        other.http(8080),
        web.http(8081),
    ];
    web.get(one.at(9005), "one", "/").await.unwrap().is_ok();
    web.get(other.at(8080), "other", "/").await.unwrap().is_ok();
    one.get(web.at(8081), "web", "/").await.unwrap().is_ok();
    assert!(web.get(one.at(8080), "one", "/").await.is_err());
    let seen = programs.map(|program| program.seen().len());
    assert_eq!(seen, [1, 0, 1, 1]);
}
