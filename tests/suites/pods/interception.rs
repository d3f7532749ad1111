//! A pod's connections are redirected through its sidecar, transparently to the program and its caller.

mod outside;
mod permissive;
mod rules;

use std::{net::SocketAddr, panic::AssertUnwindSafe};

use futures_util::FutureExt as _;
use http::StatusCode;
use merlon_tests::{
    Reply, limit,
    pods::{Node, Pod, are_possible},
    until,
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

    wire.sealed(&["canary-in-the-mesh"], async |text| {
        node.in_plain(text).await;
    })
    .await;
}

#[tokio::test]
async fn a_capture_finds_what_crosses_the_wire_in_plain_text() {
    if !are_possible() {
        return;
    }
    let node = Node::start("", &documents()).await;
    let wire = node.capture();
    node.in_plain("canary-in-the-open").await;
    let asked = wire.sealed(&["canary-in-the-open"], async |text| {
        node.in_plain(text).await;
    });
    let failed = AssertUnwindSafe(asked).catch_unwind().await;
    let failed = failed.expect_err("it is not sealed");
    let message = failed.downcast::<String>().expect("a message");
    assert!(
        message.contains("`canary-in-the-open` crossed the wire in plain text"),
        "{message}"
    );
}

#[tokio::test]
async fn a_client_outside_the_mesh_gets_no_answer_and_the_program_sees_nothing() {
    if !are_possible() {
        return;
    }
    let node = Node::start("", &documents()).await;
    let web = node.meshed("web", WEB, &[]).await;
    let orders = node.meshed("orders", ORDERS, &[]).await;
    let program = orders.http(8080);
    let outsider = node.pod("outsider", OUTSIDER);
    let unmeshed = node.pod("unmeshed", 21);
    let _open = unmeshed.http(8080);
    for (from, to) in [
        (&outsider, unmeshed.at(8080)),
        (&outsider, unmeshed.at_v6(8080)),
        (&web, orders.at(8080)),
        (&web, orders.at_v6(8080)),
    ] {
        let reply = from.get(to, "orders", "/open/x").await;
        reply.expect("the control is answered").is_ok();
    }
    assert_eq!(program.seen().len(), 2);

    for (number, to) in [orders.at(8080), orders.at_v6(8080)]
        .into_iter()
        .enumerate()
    {
        let answer = outsider.get(to, "orders", "/open/x").await;
        assert!(answer.is_err(), "{to}: {answer:?}");
        let refused = u64::try_from(number).expect("a number") + 1;
        until("the sidecar counts the refused handshake", async || {
            orders.refused_handshakes().await == refused
        })
        .await;
    }
    for to in [orders.at(7561), orders.at(7560)] {
        let answer = outsider.get(to, "orders", "/open/x").await;
        assert!(answer.is_err(), "{to}: {answer:?}");
    }
    assert_eq!(program.seen().len(), 2);
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
    limit("the greeting", stream.read_exact(&mut greeting))
        .await
        .unwrap();
    assert_eq!(&greeting, b"220 ready");
    assert_eq!(program.seen().len(), 1);

    let mut stream = batch.connect(cluster(5432)).unwrap();
    let mut nothing = Vec::new();
    let end = stream.read_to_end(&mut nothing);
    let ended = limit("the end of the connection", end).await;
    assert!(nothing.is_empty(), "{ended:?} {nothing:?}");
    assert_eq!(program.seen().len(), 1);
    let line = orders.log_where("reason", "authz.denied").await;
    line.has("direction", "inbound").has("protocol", "tcp");
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
    let logged = || {
        let log = orders.process_log();
        let lines = log
            .lines()
            .filter(|line| line.contains("\"certificates.not_required\""));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(logged().len(), 1, "{:?}", logged());
    assert!(logged()[0].contains("MeshConfig.permissiveNamespaces"));
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
