//! What one namespace writes does not change what the proxies of another one enforce.
//!
//! `shop` writes resources of every kind, aimed at `bank`. Each is either refused, and then nothing of the directory applies
//! (in a cluster, nothing of that resource), or it leaves every byte that the proxies of `bank` are sent as it was.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of specifications fail by panicking"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use merlon_compile::{Compiler, Mesh, Wanted};
use merlon_config::{load::load_texts, resource::KINDS};
use proptest::prelude::*;

/// The mesh, and two services of the namespace `bank` with a policy of each kind. `shop` has services of its own, one with
/// the name of a service of `bank`.
const BASE: &str = r#"
apiVersion: merlon.io/v1alpha1
kind: MeshConfig
metadata: { name: mesh, namespace: merlon-system }
spec: { trustDomain: demo.test }
---
apiVersion: merlon.io/v1alpha1
kind: Workload
metadata: { name: ledger, namespace: bank, labels: { app: ledger } }
spec: { serviceAccount: ledger, meshAddress: "127.0.0.1:7003", addresses: [10.0.0.3] }
---
apiVersion: merlon.io/v1alpha1
kind: Service
metadata: { name: ledger, namespace: bank }
spec: { selector: { app: ledger }, ports: [{ port: 80 }], addresses: [10.1.0.3] }
---
apiVersion: merlon.io/v1alpha1
kind: Workload
metadata: { name: teller, namespace: bank, labels: { app: teller } }
spec: { serviceAccount: teller, meshAddress: "127.0.0.1:7004", outbound: [{ listen: "127.0.0.1:8001", service: bank/ledger, port: 80 }] }
---
apiVersion: merlon.io/v1alpha1
kind: Service
metadata: { name: teller, namespace: bank }
spec: { selector: { app: teller }, ports: [{ port: 80 }] }
---
apiVersion: merlon.io/v1alpha1
kind: AuthorizationPolicy
metadata: { name: read, namespace: bank }
spec:
  policies: |
    @id("read")
    permit (principal == Workload::"bank/teller", action == Action::"GET", resource);
---
apiVersion: merlon.io/v1alpha1
kind: RequestAuthentication
metadata: { name: users, namespace: bank }
spec: { issuers: [{ name: customers, issuer: "https://id.bank.test", audiences: [ledger] }] }
---
apiVersion: merlon.io/v1alpha1
kind: RateLimit
metadata: { name: limit, namespace: bank }
spec: { limits: [{ name: calls, rate: { requests: 5, per: 1s } }] }
---
apiVersion: merlon.io/v1alpha1
kind: RequestValidation
metadata: { name: shape, namespace: bank }
spec: { routes: [{ path: "/entries/{id}" }] }
---
apiVersion: merlon.io/v1alpha1
kind: SecretGrant
metadata: { name: db, namespace: bank }
spec: { serviceAccount: ledger, path: db, files: {} }
---
apiVersion: merlon.io/v1alpha1
kind: Workload
metadata: { name: web, namespace: shop, labels: { app: web } }
spec: { serviceAccount: web, meshAddress: "127.0.0.1:7001", addresses: [10.0.0.1] }
---
apiVersion: merlon.io/v1alpha1
kind: Service
metadata: { name: web, namespace: shop }
spec: { selector: { app: web }, ports: [{ port: 80 }] }
---
apiVersion: merlon.io/v1alpha1
kind: Service
metadata: { name: ledger, namespace: shop }
spec: { selector: { app: web }, ports: [{ port: 80 }] }
"#;

/// Gateways of both namespaces, with one name.
const GATEWAYS: &str = r#"---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: { name: front, namespace: bank }
spec: { gatewayClassName: merlon, listeners: [{ name: http, port: 8080, protocol: HTTP }] }
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: all, namespace: bank }
spec: { parentRefs: [{ name: front }], rules: [{ backendRefs: [{ name: ledger, port: 80 }] }] }
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: { name: front, namespace: shop }
spec: { gatewayClassName: merlon, listeners: [{ name: http, port: 8080, protocol: HTTP }] }
"#;

fn document(kind: &str, name: &str, spec: &str) -> String {
    let version = match kind {
        "Gateway" | "HTTPRoute" => "gateway.networking.k8s.io/v1",
        _ => "merlon.io/v1alpha1",
    };
    format!(
        "---\napiVersion: {version}\nkind: {kind}\nmetadata: {{ name: {name}, namespace: shop, labels: {{ app: ledger }} }}\nspec: {spec}\n"
    )
}

/// Everything of `shop` that could reach `bank`, by any reference that a resource can contain.
fn attacks() -> Vec<String> {
    let mut all = Vec::new();
    let targets = [
        "",
        "{ kind: Namespace }",
        "{ kind: Namespace, name: bank }",
        "{ kind: Service, name: ledger }",
        "{ kind: Service, name: bank/ledger }",
        "{ kind: Service, name: web }",
        "{ kind: Gateway, name: front }",
        "{ kind: Mesh }",
        "{ kind: Service, name: ledger, namespace: bank }",
    ];
    let policies = [
        r#"permit (principal, action, resource);"#,
        r#"forbid (principal, action, resource);"#,
        r#"permit (principal == Workload::\"shop/web\", action, resource == Service::\"bank/ledger\");"#,
        r#"forbid (principal in Namespace::\"bank\", action, resource in Namespace::\"bank\");"#,
    ];
    for (n, target) in targets.iter().enumerate() {
        for (m, policy) in policies.iter().enumerate() {
            let spec = format!(
                "{{ targetRefs: [{target}], policies: \"@id(\\\"x{n}-{m}\\\") {policy}\" }}"
            );
            all.push(document("AuthorizationPolicy", &format!("a{n}-{m}"), &spec));
        }
        let issuer =
            "issuers: [{ name: customers, issuer: \"https://id.shop.test\", audiences: [ledger] }]";
        let spec = format!("{{ targetRefs: [{target}], {issuer}, required: false }}");
        all.push(document("RequestAuthentication", &format!("b{n}"), &spec));
        let limits = "limits: [{ name: calls, rate: { requests: 1, per: 24h } }]";
        let spec = format!("{{ targetRefs: [{target}], {limits} }}");
        all.push(document("RateLimit", &format!("c{n}"), &spec));
        let routes = "routes: [{ path: \"/entries/{id}\", methods: [PUT] }], unknownRoutes: refuse";
        let spec = format!("{{ targetRefs: [{target}], {routes} }}");
        all.push(document("RequestValidation", &format!("d{n}"), &spec));
    }
    let header = "headers: [{ service: bank/ledger, name: x-key, key: key }]";
    for (n, (account, path)) in [
        ("ledger", "db"),
        ("bank/ledger", "db"),
        ("web", "../bank/db"),
        ("web", "/bank/db"),
        ("web", "db"),
    ]
    .iter()
    .enumerate()
    {
        let spec = format!("{{ serviceAccount: {account}, path: {path}, files: {{}}, {header} }}");
        all.push(document("SecretGrant", &format!("e{n}"), &spec));
    }
    // The names, labels, service accounts and addresses of `bank`.
    for (n, spec) in [
        "{ serviceAccount: ledger, meshAddress: \"127.0.0.1:7005\" }",
        "{ serviceAccount: ledger, meshAddress: \"127.0.0.1:7003\" }",
        "{ serviceAccount: bank/ledger, meshAddress: \"127.0.0.1:7005\" }",
        "{ serviceAccount: ledger, meshAddress: \"127.0.0.1:7005\", addresses: [10.0.0.3] }",
        "{ serviceAccount: ledger, meshAddress: \"127.0.0.1:7005\", groups: [bank/staff] }",
        "{ serviceAccount: ledger, meshAddress: \"127.0.0.1:7005\", outbound: [{ listen: \"127.0.0.1:8001\", service: bank/ledger, port: 80 }] }",
    ]
    .iter()
    .enumerate()
    {
        let name = if n == 0 { "ledger".to_owned() } else { format!("w{n}") };
        all.push(document("Workload", &name, spec));
    }
    for (n, spec) in [
        "{ selector: { app: ledger }, ports: [{ port: 80 }] }",
        "{ selector: { app: ledger }, ports: [{ port: 80 }], addresses: [10.1.0.3] }",
        "{ selector: { app: ledger }, ports: [{ port: 80 }], addresses: [10.0.0.3] }",
        "{ selector: { app: ledger }, ports: [{ port: 80 }], endpoints: [10.0.0.3] }",
        "{ selector: { app: ledger }, ports: [{ port: 81 }], addresses: [10.1.0.9], endpoints: [10.0.0.3] }",
    ]
    .iter()
    .enumerate()
    {
        all.push(document("Service", &format!("s{n}"), spec));
    }
    all.push(document(
        "MeshConfig",
        "mesh",
        "{ trustDomain: demo.test, certificates: { lifetime: 10m } }",
    ));
    let listeners = "listeners: [{ name: http, port: 8080, protocol: HTTP }]";
    for (n, account) in ["", "serviceAccount: ledger, "].iter().enumerate() {
        let spec = format!("{{ gatewayClassName: merlon, {account}{listeners} }}");
        all.push(document("Gateway", &format!("g{n}"), &spec));
    }
    all
}

/// Routes of `shop` to the gateway or the service of `bank`. Whether they may exist is decided where a `ReferenceGrant` and
/// `allowedRoutes` are known: see `attach` in the control plane.
fn routes() -> Vec<String> {
    let rules = "rules: [{ backendRefs: [{ name: ledger, namespace: bank, port: 80 }] }]";
    [
        format!("{{ parentRefs: [{{ name: front }}], {rules} }}"),
        format!("{{ parentRefs: [{{ name: front, namespace: bank }}], {rules} }}"),
        "{ parentRefs: [{ name: front }], rules: [{ backendRefs: [{ name: ledger, port: 80 }] }] }"
            .to_owned(),
    ]
    .iter()
    .enumerate()
    .map(|(n, spec)| document("HTTPRoute", &format!("r{n}"), spec))
    .collect()
}

fn compile(documents: &[String]) -> Option<Arc<Mesh>> {
    let text = format!("{BASE}{GATEWAYS}{}", documents.concat());
    let resources = load_texts([("all.yaml", text)]).ok()?;
    Compiler::new().compile(&resources).ok()
}

/// Every byte that the proxies of `bank` are sent, and where its addresses lead.
fn bank(mesh: &Mesh) -> BTreeMap<String, String> {
    let wanted = Wanted::default();
    let mut all = BTreeMap::new();
    for proxy in mesh.proxies() {
        if proxy.name().namespace.as_str() != "bank" {
            continue;
        }
        for resource in mesh.proxy_state(proxy, &wanted).iter() {
            let key = format!("{} gets {}", proxy.name(), resource.key());
            all.insert(key, without_gateways_of_shop(resource.json()));
        }
        let secrets = format!("{:?}", proxy.secrets());
        all.insert(format!("{} may read", proxy.name()), secrets);
    }
    for address in ["10.1.0.3:80", "10.0.0.3:80"] {
        let leads = format!("{:?}", mesh.address(address.parse().unwrap()));
        all.insert(address.to_owned(), leads);
    }
    for name in mesh.destination_names() {
        if name.namespace.as_str() == "bank" {
            let text = mesh.destination(name).unwrap().json();
            all.insert(
                format!("to {name}"),
                String::from_utf8_lossy(text).into_owned(),
            );
        }
    }
    all
}

/// All proxies know which identities are gateways, because they keep the `x-forwarded-*` headers of their requests. So
/// `shop` adds identities of its own to that list, which SECURITY.md states.
fn without_gateways_of_shop(json: &[u8]) -> String {
    let mut state: serde_json::Value = serde_json::from_slice(json).unwrap();
    if let Some(gateways) = state.get_mut("gateways").and_then(|all| all.as_array_mut()) {
        let of_shop = |id: &serde_json::Value| {
            let id = id.as_str().unwrap();
            id.starts_with("spiffe://demo.test/ns/shop/sa/")
        };
        gateways.retain(|id| !of_shop(id));
    }
    state.to_string()
}

/// Adds each document with which the mesh still compiles, as a cluster does.
fn applied(documents: &[String]) -> Vec<String> {
    let mut kept: Vec<String> = Vec::new();
    for document in documents {
        kept.push(document.clone());
        if compile(&kept).is_none() {
            kept.pop();
        }
    }
    kept
}

#[test]
fn a_resource_of_any_kind_that_is_aimed_at_another_namespace_is_refused_or_does_not_reach_it() {
    let before = bank(&compile(&[]).unwrap());
    for kind in ["Mesh", "Service", "Workload"] {
        let sent = |key: &&String| key.starts_with(&format!("bank/ledger gets {kind} "));
        assert_eq!(before.keys().filter(sent).count(), 1, "{kind}");
    }
    let (mut kinds, mut accepted) = (BTreeSet::new(), BTreeMap::new());
    for document in attacks().into_iter().chain(routes()) {
        let kind = document.lines().nth(2).unwrap().to_owned();
        let kind = kind.trim_start_matches("kind: ").to_owned();
        kinds.insert(kind.clone());
        if let Some(mesh) = compile(std::slice::from_ref(&document)) {
            *accepted.entry(kind).or_insert(0) += 1;
            assert_eq!(bank(&mesh), before, "{document}");
        }
    }
    let all: BTreeSet<String> = KINDS.iter().map(|(_, kind)| (*kind).to_owned()).collect();
    assert_eq!(kinds, all);
    // There is one MeshConfig. Of every other kind, some are accepted: a policy may name whatever it wants.
    assert_eq!(accepted.len(), KINDS.len() - 1, "{accepted:?}");
    assert!(accepted["AuthorizationPolicy"] >= 15, "{accepted:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn no_combination_of_resources_of_one_namespace_reaches_another(
        documents in proptest::sample::subsequence(attacks(), 1..8).prop_shuffle(),
    ) {
        let before = bank(&compile(&[]).unwrap());
        let kept = applied(&documents);
        let mesh = compile(&kept).unwrap();
        prop_assert_eq!(bank(&mesh), before, "{}", kept.concat());
    }
}
