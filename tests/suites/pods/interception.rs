//! A pod's connections are redirected through its sidecar, transparently to the program and its caller.

use std::net::SocketAddr;

use http::StatusCode;
use merlon_tests::{
    Reply,
    pods::{Node, Pod, are_possible},
    tools, until,
};
use tokio::io::AsyncReadExt as _;

const WEB: u8 = 11;
const ORDERS: u8 = 12;
const BATCH: u8 = 13;
const OUTSIDER: u8 = 14;

/// The cluster address of `orders`, which leads nowhere without Merlon.
const CLUSTER: &str = "10.90.0.1";

fn documents() -> String {
    let workload = |name: &str, number: u8| {
        format!(
            "---\napiVersion: merlon.io/v1alpha1\nkind: Workload\nmetadata: {{ name: {name}, namespace: shop, labels: {{ app: {name} }} }}\n\
             spec: {{ serviceAccount: {name}, addresses: {} }}\n",
            Pod::addresses(number)
        )
    };
    format!(
        "{}{}{}---
apiVersion: merlon.io/v1alpha1
kind: Service
metadata: {{ name: orders, namespace: shop }}
spec:
  selector: {{ app: orders }}
  addresses: [{CLUSTER}, \"fd00:90::1\"]
  ports: [{{ name: http, port: 80, targetPort: 8080 }}, {{ name: db, port: 5432, appProtocol: tcp }}]
---
apiVersion: merlon.io/v1alpha1
kind: Service
metadata: {{ name: asleep, namespace: shop }}
spec: {{ selector: {{ app: none }}, addresses: [10.90.0.2], endpoints: [], ports: [{{ port: 80 }}] }}
---
apiVersion: merlon.io/v1alpha1
kind: AuthorizationPolicy
metadata: {{ name: orders, namespace: shop }}
spec:
  targetRefs: [{{ kind: Service, name: orders }}]
  policies: |
    @id(\"callers\")
    permit (principal in Namespace::\"shop\", action in Action::\"http\", resource)
    when {{ principal is Workload && context.path like \"/open/*\" }};
    @id(\"database\")
    permit (principal == Workload::\"shop/web\", action == Action::\"tcp\", resource);
",
        workload("web", WEB),
        workload("orders", ORDERS),
        workload("batch", BATCH)
    )
}

fn at(address: &str) -> SocketAddr {
    address.parse().expect("an address")
}

fn cluster(port: u16) -> SocketAddr {
    at(&format!("{CLUSTER}:{port}"))
}

/// The caller in the headers that the program received.
fn caller(reply: &Reply) -> String {
    let saw = reply.json();
    saw["headers"]["merlon-caller"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

#[tokio::test]
async fn a_call_to_a_cluster_address_is_mutual_tls_between_pods_and_authorized_by_policy() {
    if !are_possible() {
        return;
    }
    let node = Node::start("", &documents()).await;
    let web = node.meshed("web", WEB, &[]).await;
    let orders = node.meshed("orders", ORDERS, &[]).await;
    let program = orders.http(8080);
    let wire = node.capture();

    let reply = web
        .get(cluster(80), "orders.shop", "/open/canary-in-the-mesh")
        .await
        .unwrap();
    assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
    assert_eq!(caller(&reply), web.identity());
    let refused = web
        .get(cluster(80), "orders.shop", "/shut/x")
        .await
        .unwrap();
    refused.is_problem(StatusCode::FORBIDDEN, "authz.denied");
    assert_eq!(
        program.seen().len(),
        1,
        "the program does not see the refused one"
    );

    // The address decides, not the host.
    let reply = web
        .get(cluster(80), "elsewhere.example", "/open/canary-in-the-mesh")
        .await
        .unwrap();
    assert_eq!(reply.status, StatusCode::OK, "{reply:?}");

    // The pod's own address leads to the same checks, and so does the other family.
    for direct in [orders.at(8080), orders.at_v6(8080), at("[fd00:90::1]:80")] {
        let reply = web
            .get(direct, "orders", "/open/canary-in-the-mesh")
            .await
            .unwrap();
        assert_eq!(reply.status, StatusCode::OK, "{direct}: {reply:?}");
        assert_eq!(caller(&reply), web.identity(), "{direct}");
        let refused = web.get(direct, "orders", "/shut/x").await.unwrap();
        refused.is_problem(StatusCode::FORBIDDEN, "authz.denied");
    }

    assert!(
        wire.bytes() > 1_000 && !wire.has("canary-in-the-mesh"),
        "it crossed the wire in plain text"
    );
    // The same capture does see the request outside the mesh.
    let (client, unmeshed) = (node.pod("client", 20), node.pod("unmeshed", 21));
    let _program = unmeshed.http(8080);
    client
        .get(unmeshed.at(8080), "unmeshed", "/open/canary-in-the-mesh")
        .await
        .unwrap()
        .is_ok();
    until("the capture has seen it", async || {
        wire.has("canary-in-the-mesh")
    })
    .await;
}

#[tokio::test]
async fn a_client_outside_the_mesh_gets_no_answer_and_the_program_sees_nothing() {
    if !are_possible() {
        return;
    }
    let node = Node::start("", &documents()).await;
    let orders = node.meshed("orders", ORDERS, &[]).await;
    let program = orders.http(8080);
    let outsider = node.pod("outsider", OUTSIDER);
    for to in [
        orders.at(8080),
        orders.at_v6(8080),
        orders.at(7561),
        orders.at(7560),
    ] {
        let answer = outsider.get(to, "orders", "/open/x").await;
        assert!(answer.is_err(), "{to}: {answer:?}");
    }
    assert!(program.seen().is_empty());
}

#[tokio::test]
async fn a_server_that_speaks_first_is_reached_only_by_permitted_callers() {
    if !are_possible() {
        return;
    }
    let node = Node::start("", &documents()).await;
    let web = node.meshed("web", WEB, &[]).await;
    let batch = node.meshed("batch", BATCH, &[]).await;
    let orders = node.meshed("orders", ORDERS, &[]).await;
    let program = orders.tcp_server_first(5432);

    let mut stream = web.connect(cluster(5432)).unwrap();
    let mut greeting = [0; 9];
    stream.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"220 ready");
    assert_eq!(program.seen().len(), 1);

    let mut stream = batch.connect(cluster(5432)).unwrap();
    let mut nothing = Vec::new();
    let ended = stream.read_to_end(&mut nothing).await;
    assert!(nothing.is_empty(), "{ended:?} {nothing:?}");
    assert_eq!(program.seen().len(), 1);
}

#[tokio::test]
async fn when_the_proxy_dies_traffic_is_blocked_in_both_directions() {
    if !are_possible() {
        return;
    }
    let node = Node::start("", &documents()).await;
    let web = node.meshed("web", WEB, &[]).await;
    let mut orders = node.meshed("orders", ORDERS, &[]).await;
    let program = orders.http(8080);
    let unmeshed = node.pod("unmeshed", 21);
    let outside = unmeshed.http(8080);
    web.get(cluster(80), "orders", "/open/x")
        .await
        .unwrap()
        .is_ok();
    web.get(unmeshed.at(8080), "unmeshed", "/x")
        .await
        .unwrap()
        .is_ok();

    orders.kill_sidecar();
    let answer = web.get(cluster(80), "orders", "/open/x").await.unwrap();
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{answer:?}");
    web.kill_sidecar();
    for to in [cluster(80), orders.at(8080), unmeshed.at(8080)] {
        let answer = web.get(to, "orders", "/open/x").await;
        assert!(answer.is_err(), "{to}: {answer:?}");
    }
    assert_eq!((program.seen().len(), outside.seen().len()), (1, 1));

    // Traffic resumes after the sidecar restarts.
    orders.start_sidecar(&node).await;
    let batch = node.meshed("batch", BATCH, &[]).await;
    batch
        .get(cluster(80), "orders", "/open/x")
        .await
        .unwrap()
        .is_ok();
}

#[tokio::test]
async fn a_service_may_call_itself_by_its_own_address() {
    if !are_possible() {
        return;
    }
    let node = Node::start("", &documents()).await;
    let orders = node.meshed("orders", ORDERS, &[]).await;
    let program = orders.http(8080);
    let reply = orders
        .get(cluster(80), "orders", "/open/myself")
        .await
        .unwrap();
    assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
    assert_eq!(caller(&reply), orders.identity());
    assert_eq!(program.seen().len(), 1, "no loop");
}

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
async fn a_namespace_accepts_plain_text_as_anonymous_only_while_it_is_permissive() {
    if !are_possible() {
        return;
    }
    let open = documents().replace(
        "    @id(\"database\")",
        "    @id(\"anonymous\") @reason(\"While callers move in.\")\n    permit (principal == Anonymous::\"peer\", action == Action::\"GET\", resource)\n    when { context.path == \"/open/legacy\" };\n    @id(\"database\")",
    );
    let node = Node::start(", permissiveNamespaces: [shop]", &open).await;
    let orders = node.meshed("orders", ORDERS, &[]).await;
    let web = node.meshed("web", WEB, &[]).await;
    let program = orders.http(8080);
    let outsider = node.pod("outsider", OUTSIDER);
    let reply = outsider
        .get(orders.at(8080), "orders", "/open/legacy")
        .await
        .unwrap();
    assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
    assert_eq!(caller(&reply), "", "an anonymous caller has no identity");
    let refused = outsider
        .get(orders.at(8080), "orders", "/open/x")
        .await
        .unwrap();
    refused.is_problem(StatusCode::FORBIDDEN, "authz.denied");
    assert_eq!(program.seen().len(), 1);
    let reply = web.get(cluster(80), "orders", "/open/x").await.unwrap();
    assert_eq!(
        caller(&reply),
        web.identity(),
        "a meshed caller keeps its identity"
    );

    node.edit(", permissiveNamespaces: [shop]", "");
    until("plaintext is refused", async || {
        outsider
            .get(orders.at(8080), "orders", "/open/legacy")
            .await
            .is_err()
    })
    .await;
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

#[tokio::test]
async fn rules_are_reapplied_checked_shown_and_removed_without_a_trace() {
    if !are_possible() {
        return;
    }
    let node = Node::start("", &documents()).await;
    let pod = node.pod("bare", 30);
    let nft = tools::installed("nft");
    let before = pod.run(&nft, &["list", "ruleset"]).await.out;
    for backend in ["nftables", "iptables"] {
        let with = |command: &'static str| vec![command, "--backend", backend];
        let dry = pod
            .intercept(&[with("apply"), vec!["--dry-run"]].concat())
            .await;
        assert!(dry.code() == 0 && dry.out.contains("7560"), "{dry:?}");
        let absent = pod.intercept(&with("check")).await;
        assert!(
            absent.code() == 1 && absent.err.contains("not in force"),
            "{absent:?}"
        );

        assert_eq!(pod.intercept(&with("apply")).await.code(), 0);
        let once = pod.run(&nft, &["list", "ruleset"]).await.out;
        assert_eq!(pod.intercept(&with("apply")).await.code(), 0);
        assert_eq!(pod.run(&nft, &["list", "ruleset"]).await.out, once);
        assert_eq!(pod.intercept(&with("check")).await.code(), 0);
        let others = [with("check"), vec!["--proxy-uid", "1"]].concat();
        let others = pod.intercept(&others).await;
        assert!(
            others.code() == 1 && others.err.contains("differ from these arguments"),
            "{others:?}"
        );

        let flush: &[&str] = match backend {
            "nftables" => &["nft", "flush", "chain", "inet", "merlon", "output"],
            _ => &["iptables", "-t", "nat", "-F", "MERLON_OUTPUT"],
        };
        let (program, flush) = (tools::installed(flush[0]), &flush[1..]);
        assert_eq!(pod.run(&program, flush).await.code(), 0);
        let emptied = pod.intercept(&with("check")).await;
        assert!(
            emptied.code() == 1 && emptied.err.contains("incomplete"),
            "{emptied:?}"
        );

        assert_eq!(pod.intercept(&["remove"]).await.code(), 0);
        assert_eq!(
            pod.intercept(&["remove"]).await.code(),
            0,
            "also without rules"
        );
        let after = pod.run(&nft, &["list", "ruleset"]).await.out;
        assert!(!after.to_lowercase().contains("merlon"), "{after}");
        if backend == "nftables" {
            assert_eq!(after, before);
        }
    }
}

#[tokio::test]
async fn iptables_redirects_in_the_same_way() {
    if !are_possible() {
        return;
    }
    let node = Node::start("", &documents()).await;
    let web = node.meshed("web", WEB, &["--backend", "iptables"]).await;
    let orders = node
        .meshed("orders", ORDERS, &["--backend", "iptables"])
        .await;
    let program = orders.http(8080);
    for to in [cluster(80), orders.at(8080)] {
        let reply = web.get(to, "orders", "/open/x").await.unwrap();
        assert_eq!(caller(&reply), web.identity(), "{to}");
    }
    let outsider = node.pod("outsider", OUTSIDER);
    assert!(
        outsider
            .get(orders.at(8080), "orders", "/open/x")
            .await
            .is_err()
    );
    assert_eq!(program.seen().len(), 2);
}

#[tokio::test]
async fn without_privileges_rules_are_refused_with_the_missing_capability() {
    if !are_possible() {
        return;
    }
    let node = Node::start("", &documents()).await;
    let pod = node.pod("bare", 30);
    let program = tools::binary("merlon-intercept");
    let program = program.to_str().unwrap();
    let user = [
        "--reuid=7565",
        "--regid=7565",
        "--clear-groups",
        program,
        "apply",
    ];
    let refused = pod.run(tools::installed("setpriv"), &user).await;
    assert_eq!(refused.code(), 1, "{refused:?}");
    assert!(refused.err.contains("NET_ADMIN"), "{refused:?}");
    let wrong = pod
        .intercept(&["apply", "--exclude-outbound-ports", "80;flush ruleset"])
        .await;
    assert_eq!(wrong.code(), 2, "{wrong:?}");
    assert!(wrong.err.contains("is not a port"), "{wrong:?}");
}
