//! The state that resources give each proxy.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of specifications fail by panicking"
)]

use std::collections::BTreeMap;

use merlon_compile::{Compiler, Mesh, ProxyUnknown, Wanted};
use merlon_config::{
    Resources,
    load::{load_texts, read_texts},
    name::{ServiceName, SpiffeId},
    report::Report,
    resource::{ClaimType, Spec, TargetKind},
    snapshot::{Destination, InboundService, WorkloadState},
};
use proptest::prelude::*;

const MESH: &str = "
apiVersion: merlon.io/v1alpha1
kind: MeshConfig
metadata: { name: mesh, namespace: merlon-system }
spec: { trustDomain: demo.test }
";

fn document(kind: &str, name: &str, spec: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap();
    format!(
        "---\napiVersion: merlon.io/v1alpha1\nkind: {kind}\nmetadata: {{ name: {name}, namespace: {namespace} }}\nspec:\n{spec}\n"
    )
}

fn workload(name: &str, port: u16, groups: &str) -> String {
    let (namespace, short) = name.split_once('/').unwrap();
    format!(
        "---\napiVersion: merlon.io/v1alpha1\nkind: Workload\n\
         metadata: {{ name: {short}, namespace: {namespace}, labels: {{ app: {short} }} }}\n\
         spec: {{ serviceAccount: {short}, meshAddress: \"127.0.0.1:{port}\", groups: [{groups}] }}\n"
    )
}

fn service(name: &str) -> String {
    let short = name.split_once('/').unwrap().1;
    document(
        "Service",
        name,
        &format!("  selector: {{ app: {short} }}\n  ports: [{{ port: 80 }}]"),
    )
}

fn permit(name: &str, targets: &str, body: &str) -> String {
    let id = name.replace('/', "-");
    document(
        "AuthorizationPolicy",
        name,
        &format!("  targetRefs: [{targets}]\n  policies: |\n    @id(\"{id}\")\n    {body}"),
    )
}

fn gateway(name: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{ name: {name}, namespace: shop }}\n\
         spec:\n  gatewayClassName: merlon\n  listeners: [{{ name: http, port: 8080, protocol: HTTP }}]\n"
    )
}

/// A route from the gateway `edge` to the service `web`.
fn route(name: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{ name: {name}, namespace: shop }}\n\
         spec:\n  parentRefs: [{{ name: edge }}]\n  rules: [{{ backendRefs: [{{ name: web, port: 80 }}] }}]\n"
    )
}

const ALL: &str = "permit (principal, action == Action::\"GET\", resource);";

/// `shop/orders`, `shop/web` and `bank/ledger`, each a Workload with a Service.
fn base() -> String {
    let mut text = MESH.to_owned();
    for (port, name) in [
        (7001, "shop/orders"),
        (7002, "shop/web"),
        (7003, "bank/ledger"),
    ] {
        text.push_str(&workload(name, port, ""));
        text.push_str(&service(name));
    }
    text
}

fn compile(text: &str) -> std::sync::Arc<Mesh> {
    try_compile(text).unwrap_or_else(|report| panic!("{report}"))
}

fn try_compile(text: &str) -> Result<std::sync::Arc<Mesh>, Report> {
    Compiler::new().compile(&load_texts([("mesh.yaml", text)])?)
}

fn name(text: &str) -> ServiceName {
    text.parse().unwrap()
}

fn id(text: &str) -> SpiffeId {
    let (namespace, account) = text.split_once('/').unwrap();
    format!("spiffe://demo.test/ns/{namespace}/sa/{account}")
        .parse()
        .unwrap()
}

fn inbound(mesh: &Mesh, service: &str) -> InboundService {
    serde_json::from_slice(mesh.service(&name(service)).unwrap().json()).unwrap()
}

fn policies(mesh: &Mesh, service: &str) -> Vec<String> {
    let service = inbound(mesh, service);
    service
        .policies
        .iter()
        .map(|document| document.name.to_string())
        .collect()
}

/// The version of every proxy's state, by name.
fn versions(mesh: &Mesh) -> BTreeMap<String, String> {
    mesh.proxies()
        .map(|proxy| {
            let state = mesh.proxy_state(proxy, &Wanted::default());
            let manifest = state.manifest(proxy.identity());
            (proxy.name().to_string(), manifest.version().to_string())
        })
        .collect()
}

#[test]
fn a_policy_applies_to_the_service_it_names_or_to_all_of_its_namespace_and_to_no_other() {
    let mesh = compile(&format!(
        "{}{}{}{}",
        base(),
        permit("shop/one", "{ kind: Service, name: orders }", ALL),
        permit("shop/two", "", ALL),
        permit(
            "shop/three",
            "{ kind: Namespace }, { kind: Service, name: web }",
            ALL
        ),
    ));
    assert_eq!(
        policies(&mesh, "shop/orders"),
        ["shop/one", "shop/three", "shop/two"]
    );
    assert_eq!(
        policies(&mesh, "shop/web"),
        ["shop/three", "shop/two"],
        "each once"
    );
    assert!(policies(&mesh, "bank/ledger").is_empty());
}

#[test]
fn a_mesh_target_in_the_root_namespace_applies_to_all_services_and_comes_first() {
    let mesh = compile(&format!(
        "{}{}{}{}",
        base(),
        permit("bank/aaa", "", ALL),
        permit("merlon-system/wide", "{ kind: Mesh }", ALL),
        permit("merlon-system/own", "", ALL),
    ));
    assert_eq!(
        policies(&mesh, "bank/ledger"),
        ["merlon-system/wide", "bank/aaa"]
    );
    assert_eq!(policies(&mesh, "shop/web"), ["merlon-system/wide"]);
}

#[test]
fn a_mesh_target_outside_the_root_namespace_is_refused() {
    let text = format!("{}{}", base(), permit("shop/wide", "{ kind: Mesh }", ALL));
    let report = try_compile(&text).unwrap_err();
    assert!(report.to_string().contains("Mesh"), "{report}");
    // Even without that check it applies to no service.
    let own = format!(
        "{}{}",
        base(),
        permit("shop/wide", "{ kind: Namespace }", ALL)
    );
    let mut list = load_texts([("mesh.yaml", own)]).unwrap().list;
    for resource in &mut list {
        if let Spec::AuthorizationPolicy(spec) = &mut resource.spec {
            spec.target_refs[0].kind = TargetKind::Mesh;
        }
    }
    let unchecked: Resources = list.into_iter().collect();
    let mesh = Compiler::new().compile(&unchecked).unwrap();
    assert!(policies(&mesh, "bank/ledger").is_empty() && policies(&mesh, "shop/web").is_empty());
}

#[test]
fn broken_cedar_is_reported_once_with_file_line_and_column() {
    let text = format!(
        "{}{}",
        base(),
        permit(
            "shop/orders",
            "",
            "permit (principal, action, resource) when { context.nothing };"
        )
    );
    let line = text
        .lines()
        .position(|line| line.contains("context.nothing"))
        .unwrap()
        + 1;
    let report = try_compile(&text).unwrap_err();
    let [problem] = report.problems() else {
        panic!("{report}")
    };
    assert_eq!(
        (problem.file.as_str(), problem.line as usize),
        ("mesh.yaml", line),
        "{report}"
    );
    assert!(problem.column > 4, "{report}");
    let unreadable = text.replace("context.nothing }", "context.");
    let report = try_compile(&unreadable).unwrap_err();
    assert_eq!(report.problems().len(), 1, "{report}");
    assert_eq!(report.problems()[0].line as usize, line, "{report}");
}

#[test]
fn a_broken_json_schema_is_reported_with_its_position() {
    let text = format!(
        "{}{}",
        base(),
        document(
            "RequestValidation",
            "shop/orders",
            "  routes:\n    - path: /orders\n      body: { type: 12 }",
        )
    );
    let line = text
        .lines()
        .position(|line| line.contains("type: 12"))
        .unwrap()
        + 1;
    let report = try_compile(&text).unwrap_err();
    assert_eq!(report.problems()[0].line as usize, line, "{report}");
}

#[test]
fn after_a_broken_change_the_last_valid_mesh_is_kept() {
    let mut compiler = Compiler::new();
    let load = |text: &str| load_texts([("mesh.yaml", text)]).unwrap();
    let good = compiler.compile(&load(&base())).unwrap();
    let broken = format!(
        "{}{}",
        base(),
        permit("shop/a", "", "permit (principal, action);")
    );
    compiler.compile(&load(&broken)).unwrap_err();
    assert_eq!(versions(compiler.last().unwrap()), versions(&good));
}

#[test]
fn a_policy_that_compiled_is_compiled_again_when_its_text_changes() {
    let mut compiler = Compiler::new();
    let load = |body: &str| {
        let text = format!("{}{}", base(), permit("shop/a", "", body));
        load_texts([("mesh.yaml", text)]).unwrap()
    };
    compiler.compile(&load(ALL)).unwrap();
    compiler.compile(&load(ALL)).unwrap();
    let broken = "permit (principal, action, resource) when { context.nothing };";
    compiler.compile(&load(broken)).unwrap_err();
    compiler.compile(&load(broken)).unwrap_err();
    compiler.compile(&load(ALL)).unwrap();
}

#[test]
fn a_service_gets_the_members_of_the_groups_that_its_policies_mention_and_of_no_other() {
    let group = "permit (principal in WorkloadGroup::\"pci\", action, resource);";
    let text = format!(
        "{MESH}{}{}{}{}{}",
        workload("shop/web", 7001, "pci, batch"),
        workload("bank/ledger", 7002, "pci"),
        service("shop/web"),
        service("bank/ledger"),
        permit("shop/a", "", group),
    );
    let mesh = compile(&text);
    let groups = inbound(&mesh, "shop/web").workload_groups;
    let members: Vec<_> = groups["pci"].iter().map(ToString::to_string).collect();
    assert_eq!(
        (groups.len(), members),
        (1, vec!["bank/ledger".to_owned(), "shop/web".to_owned()])
    );
    assert!(inbound(&mesh, "bank/ledger").workload_groups.is_empty());
    let escaped = text.replace("WorkloadGroup::\"pci\"", "WorkloadGroup::\"p\\u{63}i\"");
    assert_eq!(
        inbound(&compile(&escaped), "shop/web").workload_groups,
        groups
    );
}

#[test]
fn a_mesh_wide_policy_may_read_a_claim_that_only_some_services_declare() {
    let reads = "forbid (principal, action, resource) when { context has user && context.user.claims has tier && context.user.claims.tier == \"free\" };";
    let issuer = "  issuers:\n    - { name: idp, issuer: \"https://idp.test\", audiences: [a], claims: { tier: String } }";
    let mesh = compile(&format!(
        "{}{}{}",
        base(),
        permit("merlon-system/tiers", "{ kind: Mesh }", reads),
        document("RequestAuthentication", "shop/tokens", issuer),
    ));
    assert!(
        inbound(&mesh, "shop/web")
            .declared_elsewhere
            .claims
            .is_empty()
    );
    let elsewhere = inbound(&mesh, "bank/ledger").declared_elsewhere.claims;
    assert_eq!(elsewhere.get("tier"), Some(&ClaimType::String));
}

#[test]
fn a_destination_has_every_replica_with_its_identity_in_order_of_address() {
    let replica = |name: &str, account: &str, port: u16| {
        format!(
            "---\napiVersion: merlon.io/v1alpha1\nkind: Workload\n\
             metadata: {{ name: {name}, namespace: shop, labels: {{ app: orders }} }}\n\
             spec: {{ serviceAccount: {account}, meshAddress: \"127.0.0.1:{port}\" }}\n"
        )
    };
    let mesh = compile(&format!(
        "{MESH}{}{}{}",
        service("shop/orders"),
        replica("b", "orders", 7009),
        replica("a", "orders-old", 7010),
    ));
    let found = mesh.destination(&name("shop/orders")).unwrap();
    let found: Destination = serde_json::from_slice(found.json()).unwrap();
    let endpoints: Vec<_> = found
        .endpoints
        .iter()
        .map(|endpoint| (endpoint.address.port(), endpoint.identity.clone().unwrap()))
        .collect();
    assert_eq!(
        endpoints,
        [(7009, id("shop/orders")), (7010, id("shop/orders-old"))]
    );
}

#[test]
fn a_gateways_state_has_its_routes_its_own_policies_and_its_backends() {
    let mesh = compile(&format!(
        "{}{}{}{}",
        base(),
        gateway("edge"),
        route("all"),
        permit("shop/edge", "{ kind: Gateway, name: edge }", ALL),
    ));
    let edge = mesh.proxy(&id("shop/edge"), None).unwrap();
    assert!(edge.is_gateway());
    let state = mesh.proxy_state(edge, &Wanted::default());
    let keys: Vec<_> = state
        .iter()
        .map(|resource| resource.key().to_string())
        .collect();
    assert_eq!(
        keys,
        [
            "Mesh mesh",
            "Workload shop/edge",
            "Service shop/edge",
            "Destination shop/web"
        ]
    );
    let own = state.iter().nth(1).unwrap();
    let own: WorkloadState = serde_json::from_slice(own.json()).unwrap();
    assert_eq!(own.gateway.unwrap().routes[0].name, name("shop/all"));
    assert_eq!(policies(&mesh, "shop/edge"), ["shop/edge"]);
    assert!(policies(&mesh, "shop/web").is_empty());
}

#[test]
fn a_gateways_routes_are_ordered_by_age_and_then_by_name() {
    let text = format!(
        "{}{}{}{}{}",
        base(),
        gateway("edge"),
        route("a"),
        route("b"),
        route("c"),
    );
    let mut loaded = read_texts([("all.yaml", text)]);
    for resource in &mut loaded.resources.list {
        resource.created = match resource.name.as_str() {
            "a" => Some(300),
            "b" | "c" => Some(200),
            _ => None,
        };
    }
    loaded.resources.list.reverse();
    let (_, mesh) = Compiler::new().compile_loaded(loaded).unwrap();
    let edge = mesh.proxy(&id("shop/edge"), None).unwrap();
    let state = mesh.proxy_state(edge, &Wanted::default());
    let mut own = state
        .iter()
        .filter(|one| one.key().to_string() == "Workload shop/edge");
    let own: WorkloadState = serde_json::from_slice(own.next().unwrap().json()).unwrap();
    let names = own
        .gateway
        .unwrap()
        .routes
        .into_iter()
        .map(|route| route.name.to_string());
    assert_eq!(names.collect::<Vec<_>>(), ["shop/b", "shop/c", "shop/a"]);
}

#[test]
fn a_gateway_with_the_name_of_a_service_is_refused() {
    let text = format!("{}{}", base(), gateway("web"),);
    let report = try_compile(&text).unwrap_err();
    assert!(
        report.to_string().contains("ambiguous in policies"),
        "{report}"
    );
}

#[test]
fn lines_added_above_a_policy_change_no_version() {
    let text = format!("{}{}", base(), permit("shop/a", "", ALL));
    let moved = text.replacen("apiVersion", "# one\n# two\napiVersion", 1);
    assert_eq!(versions(&compile(&text)), versions(&compile(&moved)));
}

#[test]
fn a_change_to_one_service_changes_its_own_proxy_and_no_other() {
    let before = versions(&compile(&base()));
    let after = versions(&compile(&format!(
        "{}{}",
        base(),
        permit("shop/a", "{ kind: Service, name: orders }", ALL)
    )));
    let changed: Vec<_> = before
        .iter()
        .filter(|(name, version)| after[*name] != **version)
        .collect();
    assert_eq!(changed.len(), 1, "{changed:?}");
    assert_eq!(changed[0].0, "shop/orders");
}

#[test]
fn an_identity_without_resources_has_no_proxy() {
    let mesh = compile(&base());
    assert!(!mesh.knows(&id("shop/unknown")));
    let error = mesh.proxy(&id("shop/unknown"), None).unwrap_err();
    assert_eq!(error, ProxyUnknown::Identity(id("shop/unknown")));
}

/// Documents of three namespaces, one text each.
fn documents() -> Vec<String> {
    let text = format!(
        "{}{}{}{}{}",
        base(),
        permit("shop/one", "{ kind: Service, name: orders }", ALL),
        permit("shop/two", "", ALL),
        permit("merlon-system/wide", "{ kind: Mesh }", ALL),
        document(
            "RateLimit",
            "shop/limit",
            "  limits: [{ name: many, rate: { requests: 5, per: 1s } }]",
        ),
    );
    text.split("---\n").map(str::to_owned).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn the_order_of_files_changes_no_byte(order in Just(documents()).prop_shuffle()) {
        let files = |documents: &[String]| -> Resources {
            let named = documents.iter();
            // Files are named by their content, because policies contain the name of their file.
            let named = named.map(|text| (format!("{}.yaml", merlon_config::snapshot::Version::of(text.as_bytes())), text.clone()));
            load_texts(named).unwrap()
        };
        let first = Compiler::new().compile(&files(&documents())).unwrap();
        let second = Compiler::new().compile(&files(&order)).unwrap();
        prop_assert_eq!(versions(&first), versions(&second));
    }
}
