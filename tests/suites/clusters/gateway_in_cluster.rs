//! The gateway on a real Kubernetes cluster: resources of Gateway API, requests from outside the mesh.

mod certificates;

use std::sync::atomic::{AtomicU32, Ordering};

use merlon_tests::{
    Cluster,
    cluster::{self, merlon},
    process::Output,
    tools, wait,
};
use rcgen::{CertificateParams, KeyPair};
use serde_json::Value;
use tokio::sync::{Mutex, OnceCell};

use crate::installed::installed;

/// Chart values: one port without TLS for all hosts, and one with a certificate for each of two hosts.
pub(crate) const VALUES: &str = "
gateway:
  enabled: true
  service: { type: ClusterIP }
  listeners:
    - { name: http, port: 80, protocol: HTTP, allowedRoutes: { namespaces: { from: All } } }
    - name: shop
      port: 443
      protocol: HTTPS
      hostname: shop.example
      tls: { certificateRefs: [{ name: shop-cert }] }
      allowedRoutes: { namespaces: { from: All } }
    - name: bank
      port: 443
      protocol: HTTPS
      hostname: '*.bank.example'
      tls: { certificateRefs: [{ name: bank-cert }] }
      allowedRoutes: { namespaces: { from: Selector, selector: { matchLabels: { money: 'yes' } } } }
";

/// The gateway permits `GET` for all clients; the services behind it decide again.
const OPEN: &str = "
apiVersion: merlon.io/v1alpha1
kind: AuthorizationPolicy
metadata: { name: gateway, namespace: merlon-system }
spec:
  targetRefs: [{ kind: Gateway, name: merlon-gateway }]
  policies: |
    @id(\"public-reads\")
    permit (principal, action == Action::\"GET\", resource);
";

/// Held by tests that compare the gateway's pods.
static PODS: Mutex<()> = Mutex::const_new(());

/// Creates the Secrets that [`VALUES`] name.
pub(crate) async fn create_certificates(cluster: &Cluster) {
    certificate(cluster, "shop-cert", "shop.example").await;
    certificate(cluster, "bank-cert", "*.bank.example").await;
}

/// The shared cluster, with a policy for the gateway and a client outside the mesh.
async fn edge() -> &'static Cluster {
    static EDGE: OnceCell<&Cluster> = OnceCell::const_new();
    EDGE.get_or_init(async || {
        let cluster = installed().await.cluster;
        cluster.apply(OPEN).await;
        cluster.kubectl(&["create", "namespace", "visitors"]).await;
        cluster
            .apply_in(
                "visitors",
                &cluster::program("visitor", 1, "exec sleep infinity", ""),
            )
            .await;
        cluster.available("visitors").await;
        // A node programs its rules for a new Service shortly after the pods of the Service are ready.
        wait::until("the visitor reaches the gateway", async || {
            let answer = call(cluster, "http://unknown.example/", &[]).await;
            answer.out.ends_with("\n404")
        })
        .await;
        cluster
    })
    .await
}

/// Puts a new certificate for a host into a Secret; returns it as PEM.
async fn certificate(cluster: &Cluster, name: &str, host: &str) -> String {
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new([host.to_owned()]).expect("a host");
    let leaf = params.self_signed(&key).expect("a certificate");
    let indented = |pem: &str| pem.trim().replace('\n', "\n    ");
    cluster
        .apply(&format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{ name: {name}, namespace: {} }}\ntype: kubernetes.io/tls\n\
             stringData:\n  tls.crt: |\n    {}\n  tls.key: |\n    {}\n",
            merlon::NAMESPACE,
            indented(&leaf.pem()),
            indented(&key.serialize_pem())
        ))
        .await;
    leaf.pem()
}

/// A namespace in the mesh with services that return their names and permit the gateway.
async fn namespace(cluster: &Cluster, name: &str, services: &[&str]) -> String {
    let namespace = cluster.meshed_namespace(name).await;
    for service in services {
        let site = format!(
            "mkdir -p /site/cgi-bin && printf '#!/bin/sh\\necho; echo {service}; env | grep ^HTTP_' > /site/cgi-bin/say \
             && chmod +x /site/cgi-bin/say && exec busybox httpd -f -p 8080 -h /site"
        );
        let ports = "          readinessProbe: { tcpSocket: { port: 8080 }, periodSeconds: 1 }";
        let documents = format!(
            "{}apiVersion: v1
kind: Service
metadata: {{ name: {service} }}
spec: {{ selector: {{ app: {service} }}, ports: [{{ port: 80, targetPort: 8080 }}] }}
---
apiVersion: merlon.io/v1alpha1
kind: AuthorizationPolicy
metadata: {{ name: {service} }}
spec:
  targetRefs: [{{ kind: Service, name: {service} }}]
  policies: |
    @id(\"edge\")
    permit (principal == Workload::\"merlon-system/merlon-gateway\", action, resource);
",
            cluster::program(service, 1, &site, ports)
        );
        cluster.apply_in(&namespace, &documents).await;
    }
    if !services.is_empty() {
        cluster.available(&namespace).await;
    }
    for service in services {
        let policy = format!("authorizationpolicy/{service}");
        cluster.programmed(&namespace, &policy).await;
    }
    namespace
}

/// Calls the gateway from outside the mesh, for the URL's host.
async fn call(cluster: &Cluster, url: &str, more: &[&str]) -> Output {
    let to = "::merlon-gateway.merlon-system.svc.cluster.local:";
    let arguments = [&["--connect-to", to, url], more].concat();
    cluster.curl("visitors", "visitor", &arguments).await
}

/// Waits until the gateways serve every earlier change: a policy for them that is applied now is in force.
async fn settled(cluster: &Cluster) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("settled-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    cluster
        .apply(&format!(
            "apiVersion: merlon.io/v1alpha1\nkind: AuthorizationPolicy\n\
             metadata: {{ name: {name}, namespace: {} }}\nspec:\n  \
             targetRefs: [{{ kind: Gateway, name: merlon-gateway }}]\n  policies: |\n    @id(\"{name}\")\n    \
             forbid (principal, action, resource) when {{ context has path && context.path == \"/{name}\" }};\n",
            merlon::NAMESPACE
        ))
        .await;
    let policy = format!("authorizationpolicy/{name}");
    cluster.programmed(merlon::NAMESPACE, &policy).await;
    cluster
        .kubectl(&["delete", &policy, "-n", merlon::NAMESPACE, "--wait=false"])
        .await;
}

/// Once the gateways serve every earlier change, the first answer contains `expected`.
async fn answers(cluster: &Cluster, url: &str, more: &[&str], expected: &str) {
    settled(cluster).await;
    let answer = call(cluster, url, more).await;
    assert!(
        answer.out.contains(expected),
        "{url} {more:?}: {expected:?} is not in {answer:?}"
    );
}

/// Waits for a condition of an HTTPRoute at its first parent; returns its reason and message.
async fn route_condition(
    cluster: &Cluster,
    namespace: &str,
    route: &str,
    condition: &str,
) -> (String, String) {
    let of = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    wait::until_some(format!("{route}: {condition}"), async || {
        let (kind, status) = condition.split_once('=').expect("a condition");
        let route = cluster
            .json(&["get", "httproute", "-n", namespace, route])
            .await;
        let parent = &route["status"]["parents"][0];
        let mut all = parent["conditions"].as_array()?.iter();
        let generation = &route["metadata"]["generation"];
        let found = all.find(|one| {
            one["type"] == kind
                && one["status"] == status
                && one["observedGeneration"] == *generation
        })?;
        Some((of(&found["reason"]), of(&found["message"])))
    })
    .await
}

fn route(name: &str, host: &str, rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{ name: {name} }}
spec:
  parentRefs: [{{ name: merlon-gateway, namespace: merlon-system }}]
  hostnames: ['{host}']
  rules:
{rules}
"
    )
}

#[tokio::test]
async fn requests_from_outside_are_routed_by_path_header_and_weight_under_the_gateways_own_identity()
 {
    if !cluster::are_possible() {
        return;
    }
    let cluster = edge().await;
    let shop = namespace(cluster, "routes", &["orders", "next", "stock"]).await;
    let rules = "
    - matches: [{ path: { type: PathPrefix, value: /cgi-bin } }]
      backendRefs: [{ name: orders, port: 80 }]
    - matches: [{ path: { type: PathPrefix, value: /cgi-bin }, headers: [{ name: X-Version, value: next }] }]
      backendRefs: [{ name: next, port: 80 }]
    - matches: [{ path: { type: Exact, value: /cgi-bin/say }, method: GET, headers: [{ name: X-Share, value: both }] }]
      backendRefs: [{ name: orders, port: 80, weight: 1 }, { name: stock, port: 80, weight: 1 }, { name: next, port: 80, weight: 0 }]
    - matches: [{ path: { value: /gone } }]
      backendRefs: [{ name: gone, port: 80 }]";
    cluster
        .apply_in(&shop, &route("shop", "routes.example", rules))
        .await;
    route_condition(cluster, &shop, "shop", "Accepted=True").await;
    let (reason, message) = route_condition(cluster, &shop, "shop", "ResolvedRefs=False").await;
    assert_eq!(reason, "BackendNotFound");
    assert!(
        message.contains("spec.rules[3].backendRefs[0]"),
        "{message}"
    );
    for (kind, name) in [("gatewayclass", "merlon"), ("gateway", "merlon-gateway")] {
        let object = cluster
            .json(&["get", kind, name, "-n", merlon::NAMESPACE])
            .await;
        let conditions = object["status"]["conditions"]
            .as_array()
            .expect("conditions");
        assert!(
            conditions.iter().all(|one| one["status"] == "True"),
            "{kind}: {conditions:#?}"
        );
    }

    let say = "http://routes.example/cgi-bin/say";
    answers(cluster, say, &[], "\n200").await;
    let forged = [
        "-H",
        "merlon-caller: spiffe://forged",
        "-H",
        "x-forwarded-for: 1.2.3.4",
    ];
    let answer = call(cluster, say, &forged).await;
    assert!(answer.out.contains("orders\n"), "{answer:?}");
    let caller = format!(
        "HTTP_MERLON_CALLER=spiffe://{}/ns/merlon-system/sa/merlon-gateway\n",
        merlon::TRUST_DOMAIN
    );
    assert!(answer.out.contains(&caller), "{answer:?}");
    assert!(
        !answer.out.contains("forged") && !answer.out.contains("1.2.3.4"),
        "{answer:?}"
    );
    let answer = call(cluster, say, &["-H", "X-Version: next"]).await;
    assert!(answer.out.contains("next\n"), "{answer:?}");
    let both = ["-H", "X-Share: both"];
    let shared = call(cluster, &format!("{say}?[1-40]"), &both).await;
    let count = |text: &str| shared.out.matches(text).count();
    assert_eq!(count("\n200"), 40, "{shared:?}");
    let (orders, stock) = (count("orders\n"), count("stock\n"));
    assert_eq!(orders + stock, 40, "{shared:?}");
    assert!(orders > 0 && stock > 0, "{orders} and {stock} of 40");
    for (url, status) in [
        ("http://routes.example/", "404"),
        ("http://routes.example/cgi-binary", "404"),
        ("http://other.example/cgi-bin/say", "404"),
        ("http://routes.example/gone", "500"),
    ] {
        let answer = call(cluster, url, &[]).await;
        assert!(
            answer.out.ends_with(&format!("\n{status}")),
            "{url}: {answer:?}"
        );
    }
    // A younger route with the same match gets no requests, although its name sorts first and its prefix is written longer.
    let younger = "
    - matches: [{ path: { type: PathPrefix, value: /cgi-bin/ } }]
      backendRefs: [{ name: next, port: 80 }]";
    cluster
        .apply_in(&shop, &route("a-younger", "routes.example", younger))
        .await;
    route_condition(cluster, &shop, "a-younger", "Accepted=True").await;
    // Wait for a match that only the younger route has.
    let mark = "
    - matches: [{ path: { type: PathPrefix, value: /cgi-bin/ } }, { path: { value: /cgi-bin/say/younger, type: Exact } }]
      backendRefs: [{ name: next, port: 80 }]";
    cluster
        .apply_in(&shop, &route("a-younger", "routes.example", mark))
        .await;
    let only = "http://routes.example/cgi-bin/say/younger";
    answers(cluster, only, &[], "next\n").await;
    let answer = call(cluster, say, &[]).await;
    assert!(answer.out.contains("orders\n"), "{answer:?}");
    cluster
        .kubectl(&["delete", "httproute", "a-younger", "-n", &shop])
        .await;

    // The gateway's own policy permits no writes, whatever the service's policy is.
    let answer = call(cluster, say, &["-X", "POST"]).await;
    assert!(answer.out.ends_with("\n403"), "{answer:?}");
    assert!(
        !answer.out.contains("public-reads"),
        "a client outside the mesh sees no policy name: {answer:?}"
    );

    // The service's own policy applies to the gateway.
    cluster
        .kubectl(&["delete", "authorizationpolicy", "stock", "-n", &shop])
        .await;
    answers(cluster, &format!("{say}?[1-40]"), &both, "\n403").await;

    // A route that is rejected as a whole serves none of its hosts; a valid change takes effect at once.
    let filters = "
    - filters: [{ type: RequestHeaderModifier, requestHeaderModifier: { set: [{ name: a, value: b }] } }]
      backendRefs: [{ name: orders, port: 80 }]";
    cluster
        .apply_in(&shop, &route("shop", "routes.example", filters))
        .await;
    let (reason, message) = route_condition(cluster, &shop, "shop", "Accepted=False").await;
    assert_eq!(reason, "UnsupportedValue");
    assert!(message.starts_with("spec.rules[0].filters: "), "{message}");
    answers(cluster, say, &[], "\n404").await;
    let all = "
    - backendRefs: [{ name: next, port: 80 }]";
    cluster
        .apply_in(&shop, &route("shop", "routes.example", all))
        .await;
    answers(cluster, say, &[], "next\n").await;
}

#[tokio::test]
async fn a_route_reaches_another_namespace_only_with_a_reference_grant() {
    if !cluster::are_possible() {
        return;
    }
    let cluster = edge().await;
    let bank = namespace(cluster, "granting", &["accounts"]).await;
    let shop = namespace(cluster, "asking", &[]).await;
    let rules = format!("    - backendRefs: [{{ name: accounts, namespace: {bank}, port: 80 }}]");
    cluster
        .apply_in(&shop, &route("far", "far.example", &rules))
        .await;
    let (reason, message) = route_condition(cluster, &shop, "far", "ResolvedRefs=False").await;
    assert_eq!(reason, "RefNotPermitted");
    assert!(message.contains("ReferenceGrant"), "{message}");
    let say = "http://far.example/cgi-bin/say";
    answers(cluster, say, &[], "\n500").await;
    cluster
        .apply_in(
            &bank,
            &format!(
                "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {{ name: shop }}\nspec:\n  \
                 from: [{{ group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: {shop} }}]\n  to: [{{ group: '', kind: Service }}]\n"
            ),
        )
        .await;
    answers(cluster, say, &[], "accounts\n").await;
    route_condition(cluster, &shop, "far", "ResolvedRefs=True").await;
    cluster
        .kubectl(&["delete", "referencegrant", "shop", "-n", &bank])
        .await;
    answers(cluster, say, &[], "\n500").await;
}

#[tokio::test]
async fn a_rolling_restart_of_the_gateways_loses_no_request() {
    if !cluster::are_possible() {
        return;
    }
    let cluster = edge().await;
    let shop = namespace(cluster, "steady", &["orders"]).await;
    let rules = "    - backendRefs: [{ name: orders, port: 80 }]";
    cluster
        .apply_in(&shop, &route("steady", "steady.example", rules))
        .await;
    let url = "http://steady.example/cgi-bin/say";
    answers(cluster, url, &[], "\n200").await;
    let script = format!(
        "while [ ! -e /tmp/stop ]; do curl -s -m 10 -o /dev/null -w '%{{http_code}}\\n' \
         --connect-to ::merlon-gateway.merlon-system.svc.cluster.local: {url}; done; rm /tmp/stop"
    );
    let kubectl = tools::installed("kubectl");
    let load = cluster
        .inside("load", &kubectl)
        .args(["exec", "-n", "visitors", "deploy/visitor", "--", "sh", "-c"])
        .arg(script)
        .start();
    let calls = async || (load.is_alive(), load.out(), load.err());
    let several = |(_, out, _): &(bool, String, String)| out.lines().count() > 5;
    wait::until_value(
        "it is running, and several calls are answered",
        calls,
        several,
    )
    .await;
    let _pods = PODS.lock().await;
    let before = gateway_pods(cluster).await;
    let gateway = "deployment/merlon-gateway";
    cluster
        .kubectl(&["rollout", "restart", "-n", merlon::NAMESPACE, gateway])
        .await;
    cluster.rolled_out(merlon::NAMESPACE, gateway).await;
    wait::until("the old pods are gone", async || {
        let now = gateway_pods(cluster).await;
        now.iter().all(|pod| !before.contains(pod))
    })
    .await;
    let during = load.out().lines().count();
    wait::until_value("the new pods answer several calls", calls, |(_, out, _)| {
        out.lines().count() > during + 5
    })
    .await;
    cluster
        .exec("visitors", "deploy/visitor", &["touch", "/tmp/stop"])
        .await;
    load.ended().await;
    let out = load.out();
    let lost: Vec<&str> = out.lines().filter(|line| *line != "200").collect();
    assert!(lost.is_empty(), "{lost:?} of {}", out.lines().count());
}

async fn gateway_pods(cluster: &Cluster) -> Vec<String> {
    let pods = cluster
        .kubectl(&[
            "get",
            "pods",
            "-n",
            merlon::NAMESPACE,
            "-o",
            "name",
            "-l",
            "gateway.networking.k8s.io/gateway-name=merlon-gateway",
        ])
        .await;
    pods.lines().map(str::to_owned).collect()
}
