//! The mesh on a real Kubernetes cluster: installed by Helm, with certificates from OpenBao and programs that are unaware
//! of it.

mod injection;
mod probes;
mod secrets;

use merlon_tests::{
    Cluster,
    cluster::{self, merlon},
    wait,
};

use crate::installed::installed;

/// The shared cluster.
async fn meshed() -> &'static Cluster {
    installed().await.cluster
}

/// An HTTP server on 8080: `/` returns `canary-of-orders`, `/cgi-bin/head` the request's headers as CGI variables.
fn orders(replicas: u8) -> String {
    let site = "mkdir -p /site/cgi-bin && echo canary-of-orders > /site/index.html \
                && printf '#!/bin/sh\\necho; env | grep ^HTTP_' > /site/cgi-bin/head \
                && chmod +x /site/cgi-bin/head && exec busybox httpd -f -p 8080 -h /site";
    let ports = "          ports: [{ name: http, containerPort: 8080 }]
          readinessProbe: { httpGet: { path: /, port: http }, periodSeconds: 1 }";
    format!(
        "{}apiVersion: v1
kind: Service
metadata: {{ name: orders }}
spec: {{ selector: {{ app: orders }}, ports: [{{ port: 80, targetPort: http }}] }}
---
apiVersion: v1
kind: Service
metadata: {{ name: orders-each }}
spec: {{ clusterIP: None, selector: {{ app: orders }}, ports: [{{ port: 8080 }}] }}
---
",
        cluster::program("orders", replicas, site, ports)
    )
}

fn caller(name: &str) -> String {
    cluster::program(name, 1, "exec sleep infinity", "")
}

/// Permits `GET` on `orders` for `web` of the namespace.
fn web_reads(namespace: &str) -> String {
    format!(
        "
apiVersion: merlon.io/v1alpha1
kind: AuthorizationPolicy
metadata: {{ name: orders }}
spec:
  targetRefs: [{{ kind: Service, name: orders }}, {{ kind: Service, name: orders-each }}]
  policies: |
    @id(\"web-reads\")
    permit (
      principal == Workload::\"{namespace}/web\",
      action == Action::\"GET\",
      resource
    );
"
    )
}

async fn address_of(cluster: &Cluster, namespace: &str, labels: &str) -> String {
    let pods = cluster
        .json(&["get", "pods", "-n", namespace, "-l", labels])
        .await;
    let address = pods["items"][0]["status"]["podIP"].as_str();
    address.expect("an address").to_owned()
}

#[tokio::test]
async fn services_use_mutual_tls_transparently_and_are_closed_until_a_policy_permits() {
    if !cluster::are_possible() {
        return;
    }
    let cluster = meshed().await;
    let shop = cluster.meshed_namespace("shop").await;
    cluster
        .apply_in(&shop, &[orders(2), caller("web"), caller("other")].concat())
        .await;
    cluster.available(&shop).await;

    let at = format!("http://orders.{shop}/");
    // Until the caller's proxy knows the new address, its calls are plain, and the other proxy resets them.
    let refused = wait::until_value(
        "a response",
        async || cluster.curl(&shop, "web", &[&at]).await,
        |answer| !answer.out.ends_with("\n000"),
    )
    .await;
    assert!(refused.out.ends_with("\n403"), "{refused:?}");
    assert!(refused.out.contains("authz.denied"), "{refused:?}");

    cluster.apply_in(&shop, &web_reads(&shop)).await;
    cluster
        .programmed(&shop, "authorizationpolicy/orders")
        .await;
    let capture = cluster.wire();
    let each = format!("http://orders-each.{shop}.svc.cluster.local:8080/");
    let caller_line = format!(
        "HTTP_MERLON_CALLER=spiffe://{}/ns/{shop}/sa/web\n",
        merlon::TRUST_DOMAIN
    );
    let headers = [
        "-H",
        "canary: sealed-by-the-mesh",
        "-H",
        "merlon-caller: spiffe://forged",
    ];
    for url in [&at, &each, &at.replace(".svc", "")] {
        let answer = cluster.curl(&shop, "web", &[url]).await;
        assert_eq!(answer.out, "canary-of-orders\n\n200", "{url}: {answer:?}");
        let head = format!("{url}cgi-bin/head");
        let head = cluster
            .curl(&shop, "web", &[&[&head[..]], &headers[..]].concat())
            .await;
        let sealed = "HTTP_CANARY=sealed-by-the-mesh\n";
        assert!(head.out.contains(sealed), "{url}: {head:?}");
        assert!(head.out.contains(&caller_line), "{url}: {head:?}");
        assert!(!head.out.contains("forged"), "{url}: {head:?}");
    }
    let secrets = ["canary-of-orders", "sealed-by-the-mesh"];
    capture
        .sealed(&secrets, async |text| cluster.in_plain(text).await)
        .await;
    // Another workload of the namespace and another method are refused.
    for (from, more) in [("other", &[][..]), ("web", &["-X", "POST"])] {
        let answer = cluster
            .curl(&shop, from, &[&[&at[..]], more].concat())
            .await;
        assert!(answer.out.ends_with("\n403"), "{answer:?}");
    }

    // Connections to destinations outside the mesh are passed on and listed.
    let api = "https://kubernetes.default/version";
    let answer = cluster.curl(&shop, "other", &["-k", api]).await;
    assert!(answer.out.ends_with("\n200"), "{answer:?}");
    let listed = cluster.merlon(&["egress", "--kubernetes"]).await;
    let server = cluster.json(&["get", "service", "kubernetes"]).await;
    let server = server["spec"]["clusterIP"].as_str().expect("an address");
    let row = listed.out.lines().find(|line| line.contains(server));
    let row = row.unwrap_or_else(|| panic!("{listed:?}"));
    let who = format!("/ns/{shop}/sa/other");
    assert!(row.contains(&who) && row.contains(":443"), "{row}");

    // A pod outside the mesh reaches neither the program's own address nor the service's.
    let outside = cluster.namespace("outside").await;
    cluster
        .apply_in(&outside, &[caller("outsider"), orders(1)].concat())
        .await;
    cluster.available(&outside).await;
    let pod = address_of(cluster, &shop, "app=orders").await;
    for url in [format!("http://{pod}:8080/"), at.clone()] {
        let answer = cluster.curl(&outside, "outsider", &[&url]).await;
        assert!(answer.out.ends_with("\n000"), "{answer:?}");
        assert!(!answer.out.contains("canary"), "{answer:?}");
    }
    // The outsider does reach pods outside the mesh, and the same program there.
    let pod = address_of(cluster, &outside, "app=orders").await;
    let answer = cluster
        .curl(&outside, "outsider", &[&format!("http://{pod}:8080/")])
        .await;
    assert_eq!(answer.out, "canary-of-orders\n\n200", "{answer:?}");
}

#[tokio::test]
async fn admission_validates_a_resource_and_its_status_counts_the_proxies_that_enforce_it() {
    if !cluster::are_possible() {
        return;
    }
    let cluster = meshed().await;
    let shop = cluster.meshed_namespace("policies").await;
    cluster
        .apply_in(&shop, &[orders(1), caller("web")].concat())
        .await;
    cluster.available(&shop).await;
    cluster.apply_in(&shop, &web_reads(&shop)).await;
    cluster
        .programmed(&shop, "authorizationpolicy/orders")
        .await;
    let columns = cluster
        .kubectl(&["get", "authorizationpolicies", "-n", &shop])
        .await;
    let row: Vec<&str> = columns
        .lines()
        .nth(1)
        .expect("a row")
        .split_whitespace()
        .collect();
    assert_eq!(row[..4], ["orders", "True", "True", "1/1"], "{columns}");

    let wrong = web_reads(&shop).replace("\"GET\"", "\"GIT\"");
    let refused = cluster.try_apply_in(&shop, &wrong).await;
    assert_ne!(refused.code(), 0);
    let expected = "spec.policies line 4, column 13: unrecognized action `Action::\"GIT\"` \
                (hint: did you mean `Action::\"GET\"`?)";
    assert!(refused.err.contains(expected), "{}", refused.err);
    let at = format!("http://orders.{shop}/");
    let answer = cluster.curl(&shop, "web", &[&at]).await;
    assert_eq!(answer.out, "canary-of-orders\n\n200", "{answer:?}");

    let unknown = "
apiVersion: merlon.io/v1alpha1
kind: RateLimit
metadata: { name: few }
spec: { limits: [{ name: few, rate: { requests: 0, per: 1s }, burst: 1 }] }
";
    let refused = cluster.try_apply_in(&shop, unknown).await;
    assert!(refused.err.contains("requests"), "{}", refused.err);
}

#[tokio::test]
async fn a_permitted_redis_client_reaches_its_server_through_the_mesh_and_others_do_not() {
    if !cluster::are_possible() {
        return;
    }
    let cluster = meshed().await;
    let shop = cluster.meshed_namespace("redis").await;
    let server = "exec redis-server --protected-mode no --save ''";
    let service = "
apiVersion: v1
kind: Service
metadata: { name: cache }
spec: { selector: { app: cache }, ports: [{ port: 6379 }] }
---
";
    let policy = format!(
        "
apiVersion: merlon.io/v1alpha1
kind: AuthorizationPolicy
metadata: {{ name: cache }}
spec:
  targetRefs: [{{ kind: Service, name: cache }}]
  policies: |
    @id(\"web-connects\")
    permit (principal == Workload::\"{shop}/web\", action == Action::\"tcp\", resource);
"
    );
    let probe = "          readinessProbe: { tcpSocket: { port: 6379 }, periodSeconds: 1 }";
    let all = [
        cluster::program("cache", 1, server, probe),
        service.to_owned(),
        caller("web"),
        caller("other"),
    ];
    cluster.apply_in(&shop, &all.concat()).await;
    cluster.available(&shop).await;
    cluster.apply_in(&shop, &policy).await;
    cluster.programmed(&shop, "authorizationpolicy/cache").await;
    let capture = cluster.wire();
    let set = async |from: &str, value: &str| {
        let client = ["timeout", "60", "redis-cli", "-h", "cache"];
        let from = format!("deploy/{from}");
        let command = [&client[..], &["set", "key", value]].concat();
        cluster.exec(&shop, &from, &command).await
    };
    // The server itself, asked in its pod.
    let server = async |command: &[&str]| {
        let command = [&["redis-cli"], command].concat();
        let answer = cluster.exec(&shop, "deploy/cache", &command).await;
        assert_eq!(answer.code(), 0, "{answer:?}");
        answer.out
    };
    let stored = set("web", "canary-in-redis").await;
    assert_eq!(stored.out.trim(), "OK", "{stored:?}");
    capture
        .sealed(&["canary-in-redis"], async |text| {
            cluster.in_plain(text).await;
        })
        .await;

    let refused = set("other", "of-the-other").await;
    assert_eq!(refused.code(), 1, "{refused:?}");
    let closed = "Error: Server closed the connection";
    assert!(
        refused.out.contains(closed) || refused.err.contains(closed),
        "{refused:?}"
    );
    assert_eq!(server(&["get", "key"]).await.trim(), "canary-in-redis");
    let commands = server(&["info", "commandstats"]).await;
    assert!(commands.contains("cmdstat_set:calls=1,"), "{commands}");
    let log = cluster
        .kubectl(&["logs", "-n", &shop, "deploy/cache", "-c", "merlon-proxy"])
        .await;
    let refusals: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("authz.denied"))
        .collect();
    assert!(
        matches!(refusals[..], [one] if one.contains(&format!("/ns/{shop}/sa/other"))),
        "{refusals:?}"
    );
}
