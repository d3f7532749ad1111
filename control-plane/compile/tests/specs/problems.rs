//! All problems are reported at once, without problems that are only a consequence of others.

use merlon_compile::Compiler;
use merlon_config::{load::read_texts, report::Severity};

use crate::SHOP;

const BROKEN_SCHEMA: &str = "
apiVersion: merlon.io/v1alpha1
kind: RequestValidation
metadata: { name: orders, namespace: shop }
spec:
  targetRefs: [{ kind: Service, name: orders }]
  routes:
    - path: /orders/{id}
      methods: [GET]
      contentTypes: [application/json]
      body: { type: objekt }
";

const READS_PARAMS: &str = "
@id(\"a\")
permit (principal == Workload::\"shop/web\", action == Action::\"GET\", resource)
when { context has route && context.params has id && context.params.id == \"7\" };
";

/// The problems of these files, each as `file:line message`.
fn wrong(files: &[(&str, &str)]) -> Vec<String> {
    let texts = [("mesh.yaml", SHOP)]
        .into_iter()
        .chain(files.iter().copied());
    match Compiler::new().compile_loaded(read_texts(texts)) {
        Ok(_) => Vec::new(),
        Err(report) => {
            let problems = report.problems().iter();
            problems
                .map(|problem| format!("{}:{} {}", problem.file, problem.line, problem.message))
                .collect()
        }
    }
}

#[track_caller]
fn are(wrong: &[String], beginnings: &[&str]) {
    let all_there = wrong.len() == beginnings.len()
        && beginnings
            .iter()
            .all(|beginning| wrong.iter().any(|problem| problem.starts_with(beginning)));
    assert!(all_there, "{wrong:#?} are not {beginnings:#?}");
}

#[test]
fn types_references_ranges_cedar_and_json_schema_are_reported_together() {
    let limit = "
apiVersion: merlon.io/v1alpha1
kind: RateLimit
metadata: { name: web, namespace: shop }
spec: { targetRefs: [{ kind: Service, name: order }], limits: [{ name: a, per: principal, rate: { requests: 0, per: 1s } }] }
";
    let service = "
apiVersion: merlon.io/v1alpha1
kind: Service
metadata: { name: web, namespace: shop }
spec: { selektor: { app: web }, ports: [{ port: 80 }] }
";
    let unknown = "@id(\"b\")\npermit (principal, action == Action::\"GET\", resource)\nwhen { context has user && context.user.scoops.contains(\"x\") };";
    let found = wrong(&[
        ("limit.yaml", limit),
        ("service.yaml", service),
        ("schema.yaml", BROKEN_SCHEMA),
        ("shop/unknown.cedar", unknown),
        ("shop/broken.cedar", "permit (principal, action, resource"),
    ]);
    are(
        &found,
        &[
            "service.yaml:5 unknown field `selektor`",
            "limit.yaml:5 there is no Service `order`",
            "limit.yaml:5 `requests` must be from 1",
            "schema.yaml:11 the JSON Schema is not valid at `/type`: \"objekt\" is none of the types",
            "shop/unknown.cedar:3 attribute `scoops`",
            "shop/broken.cedar:1 unexpected end of input",
        ],
    );
}

#[test]
fn a_broken_schema_causes_no_problems_in_policies_on_its_paths() {
    let found = wrong(&[
        ("schema.yaml", BROKEN_SCHEMA),
        ("shop/good.cedar", READS_PARAMS),
    ]);
    are(&found, &["schema.yaml:11 the JSON Schema is not valid"]);
}

#[test]
fn policies_may_mention_what_an_unreadable_document_declares() {
    let unreadable = BROKEN_SCHEMA.replace("methods:", "metods:");
    let found = wrong(&[
        ("schema.yaml", &unreadable),
        ("shop/good.cedar", READS_PARAMS),
    ]);
    are(&found, &["schema.yaml:9 unknown field `metods`"]);

    let not_yaml = format!("{BROKEN_SCHEMA}\n  : [");
    let found = wrong(&[
        ("schema.yaml", &not_yaml),
        ("shop/good.cedar", READS_PARAMS),
    ]);
    assert!(!found.is_empty());
    assert!(
        found
            .iter()
            .all(|problem| problem.starts_with("schema.yaml:")),
        "{found:#?}"
    );
}

#[test]
fn policies_are_checked_without_a_mesh_config_too() {
    let texts = [("shop/broken.cedar", "permit (principal, action, resource")];
    let report = Compiler::new().compile_loaded(read_texts(texts)).err();
    let problems = report.map(|report| report.problems().to_vec());
    let mut errors = problems.unwrap_or_default();
    errors.retain(|problem| problem.severity == Severity::Error);
    let files: Vec<_> = errors.iter().map(|problem| problem.file.as_str()).collect();
    assert_eq!(files, ["resources", "shop/broken.cedar"], "{errors:#?}");
}

#[test]
fn a_document_that_applies_to_two_services_is_reported_once() {
    let second = "
apiVersion: merlon.io/v1alpha1
kind: Service
metadata: { name: again, namespace: shop }
spec: { selector: { app: orders }, ports: [{ port: 81 }] }
";
    let found = wrong(&[("again.yaml", second), ("shop/broken.cedar", "permit (")]);
    are(&found, &["shop/broken.cedar:1 unexpected end of input"]);
}
