use std::fs;

use super::*;
use crate::{report::Severity, resource::Spec};

const MESH: &str = "\
apiVersion: merlon.io/v1alpha1
kind: MeshConfig
metadata: { name: mesh, namespace: merlon-system }
spec: { trustDomain: example.org }
";

/// The report on a file, together with a valid MeshConfig.
fn report_on(text: &str) -> String {
    match load_texts([("mesh.yaml", MESH), ("wrong.yaml", text)]) {
        Ok(resources) => format!("accepted\n{}", resources.warnings),
        Err(report) => report.to_string(),
    }
}

#[test]
fn all_problems_of_all_files_are_reported_at_once_in_order() {
    let orders = "\
apiVersion: merlon.io/v1alpha1
kind: Service
metadata: { name: orders, namespace: shop }
spec:
  selektor: { app: orders }
  ports:
    - port: 80
      targetPort: 123456
    - port: eighty
      proto: http
    - {}
---
apiVersion: merlon.io/v1alpha1
kind: Servise
metadata: { name: orders, namespace: shop }
spec: {}
";
    let limits = "\
apiVersion: merlon.io/v1alpha1
kind: RateLimit
metadata: { name: Orders, namespace: shop, color: red }
spec:
  limits:
    - name: a
      per: pricipal
      rate: { requests: 10, per: fast }
      burst: \"10\"
    - name: b
      rate: { requets: 10, per: 1m }
";
    let broken = "kind: [\n";
    let report = load_texts([
        ("a/orders.yaml", orders),
        ("b/limits.yaml", limits),
        ("c/broken.yaml", broken),
    ])
    .unwrap_err();
    insta::assert_snapshot!(report);
}

#[test]
fn the_hint_for_an_unknown_field_is_the_nearest_known_one() {
    insta::assert_snapshot!(report_on(
        "\
apiVersion: merlon.io/v1alpha1
kind: Workload
metadata: { name: web, namespace: shop, lables: {} }
specs: {}
spec:
  serviceAcount: web
  meshaddress: 127.0.0.1:1
"
    ));
}

#[test]
fn a_value_of_the_wrong_type_is_reported_with_the_expected_type_and_a_fix() {
    insta::assert_snapshot!(report_on(
        "\
apiVersion: merlon.io/v1alpha1
kind: RequestAuthentication
metadata:
  name: customers
  namespace: shop
  labels: { version: 1, canary: true }
spec:
  required: yes
  forwardToken: 1
  issuers:
    - name: customers
      issuer: https://login.example.org
      audiences: orders
      algorithms: [ES256, HS256, none]
      clockSkew: 30
      claims: { level: Number }
"
    ));
}

#[test]
fn a_duplicate_key_is_rejected_and_not_overwritten() {
    insta::assert_snapshot!(report_on(
        "\
apiVersion: merlon.io/v1alpha1
kind: RateLimit
metadata: { name: a }
spec:
  limits: []
  limits:
    - { name: a, rate: { requests: 1, per: 1s } }
"
    ));
}

#[test]
fn anchors_aliases_and_merge_keys_are_rejected() {
    insta::assert_snapshot!("anchor", report_on("a: &x 1\nb: *x\n"));
    insta::assert_snapshot!("merge", report_on("a:\n  <<: { b: 1 }\n"));
}

#[test]
fn an_unreadable_document_does_not_hide_the_documents_after_it() {
    insta::assert_snapshot!(report_on(
        "\
kind: Service
  metadata: { name: a }
---
apiVersion: merlon.io/v1alpha1
kind: Service
metadata: { name: b }
spec: { selector: { app: b }, ports: [{ port: 80, taget: 81 }] }
--- # a comment
\"open
"
    ));
}

#[test]
fn a_document_that_is_not_a_resource_is_reported_with_its_missing_parts() {
    insta::assert_snapshot!(report_on(
        "\
- a
---
kind: Service
metadata: { name: a }
spec: { selector: { app: a }, ports: [{ port: 1 }] }
---
apiVersion: v1
kind: Service
metadata: {}
---
apiVersion: merlon.io/v1alpha1
kind: 7
metadata: web
spec: null
---
just a text
"
    ));
}

#[test]
fn a_tagged_union_has_exactly_one_of_its_names() {
    let issuer = |text: &str| {
        let text = format!(
            "apiVersion: merlon.io/v1alpha1\nkind: MeshConfig\nmetadata: {{ name: mesh, namespace: merlon-system }}\n\
             spec:\n  trustDomain: example.org\n  certificates:\n    issuer: {text}\n"
        );
        load_texts([("mesh.yaml", text)])
            .map(|_| ())
            .unwrap_err()
            .to_string()
    };
    insta::assert_snapshot!(
        "variant-unknown",
        issuer("{ vualt: { address: https://v.example.org } }")
    );
    insta::assert_snapshot!(
        "variant-two",
        issuer("{ embedded: {}, vault: { address: https://v.example.org } }")
    );
    insta::assert_snapshot!("variant-bare", issuer("vault"));
    insta::assert_snapshot!(
        "variant-content",
        issuer("{ vault: { adress: https://v.example.org } }")
    );
}

#[test]
fn depth_and_size_are_limited() {
    let deep = format!("a: {}{}\n", "[".repeat(80), "]".repeat(80));
    assert!(
        report_on(&deep).contains("more than 64 deep"),
        "{}",
        report_on(&deep)
    );
    let unclosed = "[".repeat(200_000);
    assert!(
        report_on(&unclosed).starts_with("error: "),
        "{}",
        report_on(&unclosed)
    );
    let large = format!("a: \"{}\"\n", "x".repeat(1 << 20));
    assert!(report_on(&large).contains("1MiB"), "{}", report_on(&large));
    let many = format!("a: [{}]\n", "1,".repeat(150_000));
    assert!(
        report_on(&many).contains("more than 100000 values"),
        "{}",
        report_on(&many)
    );
}

#[test]
fn of_many_problems_a_hundred_of_each_document_are_reported_and_all_are_counted() {
    let fields: String = (0..45_000).map(|n| format!("  x{n}: 1\n")).collect();
    let one = format!(
        "apiVersion: merlon.io/v1alpha1\nkind: RateLimit\nmetadata: {{ name: a }}\nspec:\n{fields}"
    );
    assert!(
        report_on(&one).ends_with("\n101 errors"),
        "{}",
        report_on(&one)
    );
    let many = "---\nkind: [\n".repeat(100_000);
    assert!(report_on(&many).ends_with("\n100000 errors"));
}

#[test]
fn control_characters_of_a_file_do_not_reach_the_terminal() {
    let report =
        report_on("apiVersion: \"\\e[31mred\"\nkind: \"\\e]0;title\\a\"\nmetadata: { name: a }\n");
    assert!(
        !report.contains('\u{1b}') && !report.contains('\u{7}'),
        "{report:?}"
    );
}

#[test]
fn status_and_metadata_of_the_api_server_are_ignored() {
    let text = "\
apiVersion: merlon.io/v1alpha1
kind: Workload
metadata:
  name: web
  uid: 7e57
  resourceVersion: \"12\"
  managedFields: [{ manager: kubectl }]
  annotations: { note: x }
spec: { serviceAccount: web }
status: { conditions: [{ type: Accepted }] }
";
    let resources = load_texts([("mesh.yaml", MESH), ("web.yaml", text)]).unwrap();
    assert_eq!(resources.list.len(), 2);
    assert_eq!(resources.list[1].namespace.as_str(), "default");
    assert_eq!(resources.list[1].origin, "web.yaml:1:1");
}

#[test]
fn every_kind_can_be_loaded() {
    let specs = [
        (
            "MeshConfig",
            "{ trustDomain: example.org, rootNamespace: default }",
        ),
        ("Workload", "{ serviceAccount: a }"),
        ("Service", "{ selector: { a: b }, ports: [{ port: 1 }] }"),
        ("AuthorizationPolicy", "{ policies: \"x\" }"),
        (
            "RequestAuthentication",
            "{ issuers: [{ name: a, issuer: \"https://a.example.org\", audiences: [b] }] }",
        ),
        (
            "RateLimit",
            "{ limits: [{ name: a, rate: { requests: 1, per: 1s } }] }",
        ),
        ("RequestValidation", "{}"),
        ("SecretGrant", "{ serviceAccount: a, path: b/c, files: {} }"),
        (
            "Gateway",
            "{ gatewayClassName: merlon, listeners: [{ name: a, port: 1, protocol: HTTP }] }",
        ),
        (
            "HTTPRoute",
            "{ parentRefs: [{ name: gateway }], rules: [{}] }",
        ),
    ];
    assert_eq!(specs.len(), KINDS.len());
    let text: String = KINDS
        .iter()
        .map(|(version, kind)| {
            let (_, spec) = specs.iter().find(|(name, _)| name == kind).unwrap();
            let name = kind.to_lowercase();
            format!("---\napiVersion: {version}\nkind: {kind}\nmetadata: {{ name: {name} }}\nspec: {spec}\n")
        })
        .collect();
    let resources = load_texts([("all.yaml", text)]).unwrap_or_else(|report| panic!("{report}"));
    let kinds: Vec<&str> = resources
        .list
        .iter()
        .map(|resource| resource.spec.kind())
        .collect();
    let known: Vec<&str> = KINDS.iter().map(|(_, kind)| *kind).collect();
    assert_eq!(kinds, known);
}

#[test]
fn a_directory_is_read_with_its_folders_but_without_hidden_files() {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    put("mesh.yaml", MESH);
    put("shop/orders.cedar", "permit (principal, action, resource);");
    put("top.cedar", "forbid (principal, action, resource);");
    put(".hidden/wrong.yaml", "[");
    put("..data/wrong.yaml", "[");
    put("README.md", "not a resource");
    let resources = load_dir(folder.path()).unwrap();
    let names: Vec<String> = resources
        .list
        .iter()
        .map(|resource| {
            format!(
                "{} {}/{}",
                resource.origin, resource.namespace, resource.name
            )
        })
        .collect();
    assert_eq!(
        names,
        [
            "mesh.yaml:1:1 merlon-system/mesh",
            "shop/orders.cedar:1:1 shop/orders",
            "top.cedar:1:1 default/top",
        ]
    );
    let Spec::AuthorizationPolicy(policy) = &resources.list[1].spec else {
        panic!("a .cedar file is an AuthorizationPolicy");
    };
    assert_eq!(policy.policies, "permit (principal, action, resource);");
}

#[test]
fn files_that_are_not_text_and_invalid_file_names_are_reported_together() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("bytes.yaml"), b"a: 1\nb: \xff\n").unwrap();
    fs::write(path("Wrong Name.cedar"), "").unwrap();
    fs::create_dir(path("Folder")).unwrap();
    fs::write(path("Folder/a.cedar"), "").unwrap();
    std::os::unix::fs::symlink(folder.path(), path("circle")).unwrap();
    let report = load_dir(folder.path()).unwrap_err().to_string();
    assert!(
        report.contains("not UTF-8 text: see line 2\n  --> bytes.yaml"),
        "{report}"
    );
    assert!(report.contains("--> Wrong Name.cedar"), "{report}");
    assert!(report.contains("--> Folder/a.cedar"), "{report}");
}

#[test]
fn a_missing_directory_is_an_error_and_not_an_empty_mesh() {
    let report = load_dir(Path::new("/nowhere/at/all")).unwrap_err();
    assert_eq!(report.count(Severity::Error), 1);
    assert!(
        report.to_string().contains("--> /nowhere/at/all"),
        "{report}"
    );
}

mod any_bytes {
    use proptest::prelude::*;

    use super::*;

    /// Fragments of YAML, which get further into the loader than random characters.
    fn yaml() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            Just("apiVersion: merlon.io/v1alpha1\n".to_owned()),
            prop::sample::select(KINDS.map(|(_, kind)| kind).to_vec())
                .prop_map(|kind| format!("kind: {kind}\n")),
            Just("metadata: {name: a, namespace: b}\n".to_owned()),
            Just("spec:\n".to_owned()),
            Just("---\n".to_owned()),
            "( {0,4})(-|ports:|limits:|routes:|issuers:|path:|policies:|rate:) ?",
            "[ \\n\\t:{}\\[\\],&*!|>'\"%@`#?-]{1,4}",
            "[a-z0-9é]{1,6}",
            any::<String>(),
        ];
        prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_text_is_accepted_or_rejected_with_reasons(text in yaml()) {
            match load_texts([("mesh.yaml", MESH.to_owned()), ("any.yaml", text)]) {
                Ok(resources) => prop_assert!(!resources.list.is_empty()),
                Err(report) => {
                    prop_assert!(report.has_errors());
                    prop_assert!(!report.to_string().is_empty());
                }
            }
        }

        #[test]
        fn a_changed_character_in_an_example_does_not_crash_the_loader(at in 0_usize..4_000, changed in any::<char>()) {
            let text = include_str!("../../examples/shop/orders.yaml");
            let text: String =
                text.chars().enumerate().map(|(i, c)| if i == at { changed } else { c }).collect();
            if let Err(report) = load_texts([("mesh.yaml", MESH.to_owned()), ("orders.yaml", text)]) {
                prop_assert!(!report.to_string().is_empty());
            }
        }
    }
}

#[test]
fn the_deepest_document_is_read_on_a_small_stack() {
    let schema = format!("{}true{}", "{ not: ".repeat(55), " }".repeat(55));
    let spec = format!("  routes:\n    - path: /\n      body: {schema}\n");
    let text = format!(
        "apiVersion: merlon.io/v1alpha1\nkind: RequestValidation\nmetadata: {{ name: deep, namespace: shop }}\nspec:\n{spec}"
    );
    let read = |text: String| {
        // The stack of a thread that reads a directory.
        let thread = std::thread::Builder::new().stack_size(2 << 20);
        let read = thread.spawn(move || read_texts([("deep.yaml", text)]).report.to_string());
        read.unwrap().join().unwrap()
    };
    let report = read(text.clone());
    assert!(!report.contains("deep.yaml:7"), "{report}");
    let deeper = text.replace("true", &format!("{}true{}", "[".repeat(20), "]".repeat(20)));
    assert!(read(deeper).contains("lists and maps are nested more than 64 deep"));
}
