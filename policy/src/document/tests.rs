use merlon_config::{
    resource::ClaimType,
    snapshot::{InboundService, MeshState, PolicyDocument},
};

use crate::{problem::PolicyProblem, tests::ServicePolicy};

fn mesh() -> MeshState {
    MeshState {
        trust_domain: "demo.test".parse().unwrap(),
        root_namespace: "merlon-system".parse().unwrap(),
        outbound: Default::default(),
        gateways: Default::default(),
    }
}

fn compile(text: &str) -> Result<ServicePolicy, Vec<PolicyProblem>> {
    compile_documents(&[("shop/orders", text)])
}

fn compile_documents(documents: &[(&str, &str)]) -> Result<ServicePolicy, Vec<PolicyProblem>> {
    let mut service: InboundService =
        serde_json::from_value(serde_json::json!({ "name": "shop/orders" })).unwrap();
    service
        .declared_elsewhere
        .claims
        .insert("department".into(), ClaimType::String);
    service.declared_elsewhere.params.push("id".into());
    service.policies = documents
        .iter()
        .map(|(name, text)| PolicyDocument {
            name: name.parse().unwrap(),
            origin: String::new(),
            text: (*text).to_owned(),
        })
        .collect();
    ServicePolicy::compile(&service, &mesh())
}

#[track_caller]
fn rejected(text: &str, line: u32, column: u32, message: &str, hint: &str) {
    let problems = compile(text).unwrap_err();
    let problem = &problems[0];
    assert_eq!((problem.line, problem.column), (line, column), "{problem}");
    assert!(problem.message.contains(message), "{problem}");
    assert!(
        problem.hint.as_deref().unwrap_or_default().contains(hint),
        "{problem}"
    );
}

#[test]
fn invalid_text_is_rejected_with_line_and_column() {
    rejected(
        "@id(\"a\")\npermit (principal, action, resource) whn { true };",
        2,
        38,
        "whn",
        "",
    );
    rejected(
        "@id(\"a\")\npermit (principal, action == Action::\"GET\", resource)\nwhen { context.path = \"/\" };",
        3,
        8,
        "",
        "==",
    );
}

#[test]
fn an_attribute_of_some_requests_only_is_rejected_with_the_scope_to_use() {
    rejected(
        "@id(\"a\") forbid (principal, action, resource)\nwhen { context.path like \"/admin/*\" };",
        2,
        8,
        "path",
        "action in Action::\"http\"",
    );
    rejected(
        "@id(\"a\") forbid (principal, action in [Action::\"GET\", Action::\"tcp\"], resource)\nwhen { context.host == \"x\" };",
        2,
        8,
        "host",
        "HTTP requests and gRPC calls",
    );
}

#[test]
fn unknown_names_are_rejected_with_the_nearest_known_name() {
    rejected(
        "@id(\"a\") permit (principal, action == Action::\"PSOT\", resource);",
        1,
        39,
        "PSOT",
        "did you mean",
    );
    rejected(
        "@id(\"a\") permit (principal, action == Action::\"GET\", resource)\nwhen { context.usr.subject == \"x\" };",
        2,
        8,
        "usr",
        "user",
    );
    // A misspelt claim under `has` is never present, so the policy never applies.
    rejected(
        "@id(\"a\") permit (principal, action == Action::\"GET\", resource)\nwhen { context has user && context.user.claims has departmnt };",
        1,
        1,
        "impossible",
        "",
    );
    rejected(
        "@id(\"a\") permit (principal == Wrkload::\"shop/web\", action, resource);",
        1,
        31,
        "Wrkload",
        "Workload",
    );
}

#[test]
fn an_optional_attribute_requires_a_has_check() {
    rejected(
        "@id(\"a\") permit (principal, action == Action::\"GET\", resource)\nwhen { context.user.subject == \"x\" };",
        2,
        8,
        "user",
        "context has user",
    );
}

#[test]
fn an_impossible_policy_is_rejected_although_cedar_only_warns() {
    rejected(
        "@id(\"a\") forbid (principal, action == Action::\"GET\", resource)\nwhen { principal is Workload && principal is Anonymous };",
        1,
        1,
        "impossible",
        "",
    );
}

#[test]
fn every_policy_has_an_id_unique_in_its_namespace() {
    rejected(
        "// first\npermit (principal == Workload::\"a/b\", action, resource);",
        2,
        1,
        "has no `@id`",
        "@id",
    );
    let text = "@id(\"a\") permit (principal == Workload::\"a/b\", action, resource);";
    let problems = compile_documents(&[("shop/orders", text), ("shop/others", text)]).unwrap_err();
    assert!(
        problems[0]
            .message
            .contains("the id `a` is used twice in the namespace `shop`"),
        "{}",
        problems[0]
    );
    // The same id in another namespace is another policy.
    compile_documents(&[("shop/orders", text), ("merlon-system/others", text)]).unwrap();
}

#[test]
fn a_permit_for_everyone_needs_a_reason() {
    rejected(
        "\n @id(\"open\") permit (principal, action, resource);",
        2,
        2,
        "`open` permits every request",
        "@reason",
    );
    compile("@id(\"open\") @reason(\"A public page.\") permit (principal, action, resource);")
        .unwrap();
    compile("@id(\"closed\") forbid (principal, action, resource);").unwrap();
}

#[test]
fn policies_apply_to_their_own_namespace_and_those_of_the_root_to_all() {
    let text = "@id(\"a\") permit (principal == Workload::\"a/b\", action, resource);";
    let problems = compile_documents(&[("payments/orders", text)]).unwrap_err();
    assert!(
        problems[0]
            .message
            .contains("do not apply to `shop/orders`")
    );
    compile_documents(&[("merlon-system/guard", text)]).unwrap();
}

#[test]
fn all_problems_are_reported_at_once() {
    let problems = compile_documents(&[
        ("shop/one", "permit (principal == Workload::\"a/b\", action, resource);\npermit (principal == Workload::\"a/b\", action, resource);"),
        ("shop/two", "nonsense"),
        ("shop/three", "@id(\"x\") permit (principal, action == Action::\"GTE\", resource);"),
    ])
    .unwrap_err();
    let documents: Vec<String> = problems
        .iter()
        .map(|problem| problem.document.to_string())
        .collect();
    assert_eq!(
        documents,
        ["shop/one", "shop/one", "shop/three", "shop/two"]
    );
}

#[test]
fn upper_case_header_names_and_templates_are_rejected() {
    rejected(
        "@id(\"a\") permit (principal, action == Action::\"GET\", resource)\nwhen { context.headers has \"X-Tenant\" };",
        2,
        29,
        "lower case",
        "x-tenant",
    );
    rejected(
        "@id(\"a\") permit (principal == ?principal, action, resource);",
        1,
        1,
        "template",
        "",
    );
}
