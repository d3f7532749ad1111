use crate::load::load_texts;

/// The report on documents, each given as `Kind namespace/name` and its `spec`, together with a valid MeshConfig.
fn report_on(documents: &[(&str, &str)]) -> String {
    let mesh = ("MeshConfig merlon-system/mesh", "trustDomain: example.org");
    let texts: Vec<(String, String)> = std::iter::once(&mesh)
        .chain(documents)
        .enumerate()
        .map(|(index, (head, spec))| (format!("{index}.yaml"), document(head, spec)))
        .collect();
    match load_texts(texts) {
        Ok(resources) => format!("accepted\n{}", resources.warnings),
        Err(report) => report.to_string(),
    }
}

fn document(head: &str, spec: &str) -> String {
    let (kind, name) = head.split_once(' ').unwrap();
    let (namespace, name) = name.split_once('/').unwrap();
    let version = match kind {
        "Gateway" | "HTTPRoute" => "gateway.networking.k8s.io/v1",
        _ => "merlon.io/v1alpha1",
    };
    let spec: String = spec.lines().map(|line| format!("  {line}\n")).collect();
    format!(
        "apiVersion: {version}\nkind: {kind}\nmetadata:\n  name: {name}\n  namespace: {namespace}\n  labels: {{ app: {name} }}\n\
         spec:\n{spec}"
    )
}

const ORDERS: (&str, &str) = (
    "Service shop/orders",
    "selector: { app: orders }\nports: [{ port: 80 }]",
);
const ORDERS_WORKLOAD: (&str, &str) = ("Workload shop/orders", "serviceAccount: orders");

#[test]
fn a_target_must_exist_in_the_policys_own_namespace() {
    let limit = |target: &str| {
        format!("targetRefs: [{target}]\nlimits: [{{ name: a, rate: {{ requests: 1, per: 1s }} }}]")
    };
    let (near, far, service, whole, other, named) = (
        limit("{ kind: Service, name: ordres }"),
        limit("{ kind: Service, name: orders }"),
        limit("{ kind: Service }"),
        limit("{ kind: Mesh }"),
        limit("{ kind: Namespace, name: shop }"),
        limit("{ kind: Mesh, name: mesh }"),
    );
    insta::assert_snapshot!(report_on(&[
        ORDERS,
        ORDERS_WORKLOAD,
        ("RateLimit shop/near", &near),
        ("RateLimit billing/far", &far),
        ("RateLimit shop/service", &service),
        ("RateLimit shop/mesh", &whole),
        ("RateLimit billing/other", &other),
        ("RateLimit merlon-system/named", &named),
        ("RateLimit merlon-system/right", &whole),
    ]));
}

#[test]
fn a_guardrail_without_effect_is_reported() {
    let policy = "policies: 'forbid (principal, action, resource);'";
    insta::assert_snapshot!(report_on(&[
        ORDERS,
        ORDERS_WORKLOAD,
        ("AuthorizationPolicy merlon-system/guardrails", policy),
        (
            "AuthorizationPolicy billing/other",
            &format!("targetRefs: [{{ kind: Namespace }}]\n{policy}"),
        ),
        ("AuthorizationPolicy shop/right", policy),
    ]));
}

#[test]
fn a_name_refers_to_one_resource_of_a_kind() {
    insta::assert_snapshot!(report_on(&[
        ORDERS,
        ORDERS_WORKLOAD,
        ORDERS,
        (
            "Gateway shop/orders",
            "gatewayClassName: merlon\nlisteners: [{ name: a, port: 80, protocol: HTTP }]",
        ),
    ]));
}

#[test]
fn there_is_exactly_one_mesh_config_in_its_root_namespace() {
    let first = document("MeshConfig shop/mesh", "trustDomain: example.org");
    let second = document("MeshConfig merlon-system/other", "trustDomain: example.org");
    let report = load_texts([("a.yaml", first), ("b.yaml", second)]).unwrap_err();
    insta::assert_snapshot!("mesh-two", report);
    let none: [(&str, &str); 0] = [];
    insta::assert_snapshot!("mesh-none", load_texts(none).unwrap_err());
}

#[test]
fn a_mesh_has_a_valid_lifetime_and_issuer() {
    let report = |spec: &str| {
        let text = document("MeshConfig merlon-system/mesh", spec);
        match load_texts([("mesh.yaml", text)]) {
            Ok(resources) => format!("accepted\n{}", resources.warnings),
            Err(report) => report.to_string(),
        }
    };
    insta::assert_snapshot!(
        "mesh-wrong",
        report(
            "trustDomain: example.org\ncertificates:\n  lifetime: 10s\n  issuer:\n    vault:\n      \
             address: http://vault.example.org:8200\n      pkiMount: ../sys\n      role: svid/x"
        )
    );
    insta::assert_snapshot!(
        "mesh-short",
        report("trustDomain: example.org\ncertificates: { lifetime: 1m }")
    );
}

#[test]
fn references_between_services_and_workloads_are_valid() {
    insta::assert_snapshot!(report_on(&[
        (
            "Workload shop/web",
            "serviceAccount: web
meshAddress: 127.0.0.1:7561
outbound:
  - { listen: 127.0.0.1:5432, service: shop/order, port: 80 }
  - { listen: 127.0.0.1:5432, service: shop/orders, port: 81 }
  - { listen: 0.0.0.0:5433, service: shop/orders, port: 80 }
  - { listen: 127.0.0.1:5434, service: billing/orders, port: 80 }",
        ),
        (
            "Workload shop/batch",
            "serviceAccount: web\nmeshAddress: 127.0.0.1:7561",
        ),
        (
            "Workload shop/orders",
            "serviceAccount: orders\nmeshAddress: 0.0.0.0:7561",
        ),
        ORDERS,
        (
            "Service shop/ledger",
            "selector: { app: ledger }
ports:
  - { port: 0, targetPort: 0, name: a }
  - { port: 80, name: a }
  - { port: 80 }",
        ),
        ("Service shop/empty", "selector: {}\nports: []"),
    ]));
}

#[test]
fn limits_are_in_range() {
    insta::assert_snapshot!(report_on(&[(
        "RateLimit shop/a",
        "limits:
  - { name: a, rate: { requests: 0, per: 0s } }
  - { name: a, rate: { requests: 2000000, per: 25h }, burst: 0 }",
    )]));
}

#[test]
fn token_issuers_are_safe_and_have_unique_names() {
    insta::assert_snapshot!(report_on(&[
        (
            "RequestAuthentication shop/a",
            "issuers:
  - name: customers
    issuer: http://login.example.org
    jwksUri: file:///etc/passwd
    audiences: []
    algorithms: []
    tokenTypes: [application/at+jwt, \"\"]
    clockSkew: 6m
  - name: customers
    issuer: https://login.example.org?tenant=1
    audiences: [\"\"]
    caCertificates: |
      -----BEGIN PRIVATE KEY-----
    groupsClaim: \"\"",
        ),
        (
            "RequestAuthentication shop/b",
            "issuers: [{ name: customers, issuer: https://other.example.org, audiences: [a] }]",
        ),
        (
            "RequestAuthentication billing/c",
            "issuers: [{ name: customers, issuer: https://third.example.org, audiences: [a] }]",
        ),
        ("RequestAuthentication billing/d", "issuers: []"),
    ]));
}

#[test]
fn routes_are_templates_that_match_different_requests() {
    insta::assert_snapshot!(report_on(&[(
        "RequestValidation shop/a",
        "limits: { headers: 65KiB, uri: 9KiB, body: 32MiB }
routes:
  - path: /orders/{id}
    methods: [GET, post, GET]
  - path: /orders/{order}
    methods: [GET]
  - path: /orders/{order}
    methods: [DELETE]
  - path: orders
  - path: /a/{rest*}/b
  - path: /a/x{id}
    contentTypes: [json, image/*, application/json; charset=utf-8]
  - path: /b
    body: true",
    )]));
}

#[test]
fn gateways_and_their_routes_have_valid_references() {
    insta::assert_snapshot!(report_on(&[
        ORDERS,
        ORDERS_WORKLOAD,
        (
            "Gateway edge/public",
            "gatewayClassName: nginx
listeners:
  - { name: a, port: 80, protocol: HTTPS }
  - { name: a, port: 80, protocol: http }
  - { name: b, port: 0, protocol: HTTP, hostname: \"*\", tls: { certificateFile: a, keyFile: b } }",
        ),
        (
            "HTTPRoute edge/a",
            "parentRefs: [{ name: pubic }, { name: public }]
hostnames: [Shop.example.org]
rules:
  - matches:
      - path: { value: \"/a/../b\" }
        headers: [{ name: \"a b\", value: c }]
        method: get
    backendRefs:
      - { name: orders, port: 80 }
      - { name: orders, namespace: shop, port: 81 }
      - { name: orders, namespace: shop, port: 80, weight: 2000000 }",
        ),
        (
            "HTTPRoute shop/b",
            "parentRefs: [{ name: public, namespace: edge }]\nrules: []",
        ),
    ]));
}

#[test]
fn a_granted_secret_stays_in_its_namespace_and_is_delivered() {
    insta::assert_snapshot!(report_on(&[
        (
            "SecretGrant shop/a",
            "serviceAccount: web\npath: ../billing/db\nfiles: { keys: [\"../x\", good] }"
        ),
        ("SecretGrant shop/b", "serviceAccount: web\npath: /db"),
        (
            "SecretGrant shop/c",
            "serviceAccount: web
path: db
headers:
  - { service: shop/orders, name: X-Key, key: a }
  - { service: shop/orders, name: x-key, key: b }
  - { service: shop/orders, name: Host, key: a }
  - { service: shop/orders, name: merlon-caller, key: a }
  - { service: shop/orders, name: \"a b\", key: a, prefix: \"a\\n\" }",
        ),
        (
            "SecretGrant shop/d",
            "serviceAccount: web\npath: db\nheaders: [{ service: shop/orders, name: X-KEY, key: a }]",
        ),
        (
            "SecretGrant shop/e",
            "serviceAccount: other\npath: db\nheaders: [{ service: shop/orders, name: X-KEY, key: a }]",
        ),
    ]));
}

#[test]
fn a_policy_without_text_is_rejected() {
    insta::assert_snapshot!(report_on(&[(
        "AuthorizationPolicy shop/a",
        "policies: \"  \""
    )]));
}

#[test]
fn a_reference_to_an_unreadable_resource_is_not_a_problem() {
    let report = report_on(&[
        ("Service shop/orders", "selector: 7\nports: []"),
        (
            "RateLimit shop/a",
            "targetRefs: [{ kind: Service, name: orders }]\nlimits: [{ name: a, rate: { requests: 1, per: 1s } }]",
        ),
        (
            "Workload shop/web",
            "serviceAccount: web\noutbound: [{ listen: 127.0.0.1:1, service: shop/orders, port: 80 }]",
        ),
    ]);
    assert!(report.ends_with("\n1 error"), "{report}");
}
