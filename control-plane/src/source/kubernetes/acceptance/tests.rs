use merlon_config::crd::CLUSTER_KINDS;
use serde_json::{Value, json};

use super::*;

fn document(kind: &str, name: &str, generation: i64, spec: &Value) -> Document {
    let namespace = if kind == "MeshConfig" {
        "merlon-system"
    } else {
        "shop"
    };
    document_in(namespace, kind, name, generation, spec)
}

fn document_in(namespace: &str, kind: &str, name: &str, generation: i64, spec: &Value) -> Document {
    let kind = CLUSTER_KINDS
        .iter()
        .find(|known| known.kind == kind)
        .unwrap();
    let object = serde_json::from_value(json!({
        "metadata": { "name": name, "namespace": namespace, "generation": generation, "uid": name },
        "spec": spec,
    }));
    Document::of(kind, &object.unwrap()).unwrap()
}

fn mesh() -> Document {
    document("MeshConfig", "mesh", 1, &json!({ "trustDomain": "x.test" }))
}

fn policy(name: &str, generation: i64, text: &str) -> Document {
    document(
        "AuthorizationPolicy",
        name,
        generation,
        &json!({ "policies": text }),
    )
}

fn service(name: &str) -> Resource {
    Resource {
        namespace: "shop".parse().unwrap(),
        name: name.parse().unwrap(),
        labels: BTreeMap::new(),
        created: None,
        origin: format!("Service/shop/{name}"),
        spec: Spec::Service(
            serde_json::from_value(
                json!({ "selector": { "app": name }, "ports": [{ "port": 80 }] }),
            )
            .unwrap(),
        ),
    }
}

fn all(documents: impl IntoIterator<Item = Document>) -> BTreeMap<Key, Document> {
    let keyed = documents
        .into_iter()
        .map(|document| (document.key.clone(), document));
    keyed.collect()
}

const RIGHT: &str = "@id(\"a\")\nforbid (principal, action, resource);";
const WRONG: &str =
    "@id(\"a\")\nforbid (principal, action, resource)\nwhen { context.nothing == 1 };";

fn of<'a>(evaluation: &'a Evaluation, name: &str) -> &'a Verdict {
    let found = evaluation.verdicts.iter().find(|(key, _)| key.name == name);
    found.unwrap().1
}

#[test]
fn an_invalid_version_keeps_the_last_valid_one_in_force_and_reports_line_and_column() {
    let mut acceptance = Acceptance::new("merlon-system");
    let found = [service("orders")];
    let first = acceptance.evaluate(&all([mesh(), policy("a", 1, RIGHT)]), &found, None);
    assert!(of(&first, "a").accepted, "{first:?}");
    let before = first.mesh.unwrap();

    let second = acceptance.evaluate(&all([mesh(), policy("a", 2, WRONG)]), &found, Some(&before));

    let verdict = of(&second, "a");
    assert_eq!((verdict.accepted, verdict.reason), (false, "Invalid"));
    assert!(
        verdict.message.starts_with("spec.policies line 3, column "),
        "{verdict:?}"
    );
    assert_eq!(verdict.in_force.as_ref().unwrap().generation, 1);
    let name = "shop/orders".parse().unwrap();
    let after = second.mesh.unwrap();
    assert_eq!(after.service(&name), before.service(&name));
}

#[test]
fn an_invalid_new_resource_does_not_block_others() {
    let mut acceptance = Acceptance::new("merlon-system");
    let found = [service("orders")];
    let evaluation = acceptance.evaluate(
        &all([mesh(), policy("a", 1, RIGHT), policy("b", 1, "permit (")]),
        &found,
        None,
    );
    assert!(of(&evaluation, "a").accepted);
    let rejected = of(&evaluation, "b");
    assert!(
        !rejected.accepted && !rejected.enforced && rejected.in_force.is_none(),
        "{rejected:?}"
    );
    assert!(rejected.message.contains("line 1, column"), "{rejected:?}");
}

#[test]
fn the_version_in_force_is_restored_from_the_status_after_a_restart() {
    let right = policy("a", 1, RIGHT).present;
    let mut rejected = policy("a", 2, WRONG);
    rejected.in_force = Some(right);
    let evaluation = Acceptance::new("merlon-system").evaluate(
        &all([mesh(), rejected]),
        &[service("orders")],
        None,
    );
    let verdict = of(&evaluation, "a");
    assert!(verdict.enforced && !verdict.accepted, "{verdict:?}");
    assert_eq!(verdict.in_force.as_ref().unwrap().generation, 1);
}

#[test]
fn a_deleted_resource_stays_in_force_while_another_needs_it() {
    let tokens = document(
        "RequestAuthentication",
        "tokens",
        1,
        &json!({ "issuers": [{
            "name": "customers", "issuer": "https://id.test", "audiences": ["shop"],
            "claims": { "level": "Long" },
        }] }),
    );
    let needs = "@id(\"a\")\nforbid (principal, action, resource)\n\
                 when { context has user && context.user.claims has level && context.user.claims.level == 1 };";
    let mut acceptance = Acceptance::new("merlon-system");
    let found = [service("orders")];
    let first = acceptance.evaluate(&all([mesh(), tokens, policy("a", 1, needs)]), &found, None);
    assert!(of(&first, "a").accepted, "{first:?}");
    let before = first.mesh.unwrap();

    let second = acceptance.evaluate(&all([mesh(), policy("a", 1, needs)]), &found, Some(&before));

    let verdict = of(&second, "a");
    assert_eq!((verdict.accepted, verdict.reason), (false, "Conflicted"));
    assert!(verdict.message.contains("tokens"), "{verdict:?}");
    let name = "shop/orders".parse().unwrap();
    assert_eq!(second.mesh.unwrap().service(&name), before.service(&name));
}

#[test]
fn a_policy_for_a_missing_target_reports_it_and_takes_effect_later() {
    let spec = json!({ "policies": RIGHT, "targetRefs": [{ "kind": "Service", "name": "later" }] });
    let waiting = document("AuthorizationPolicy", "a", 1, &spec);
    let mut acceptance = Acceptance::new("merlon-system");
    let evaluation =
        acceptance.evaluate(&all([mesh(), waiting.clone()]), &[service("orders")], None);
    assert_eq!(of(&evaluation, "a").reason, "TargetNotFound");
    let found = [service("later"), service("orders")];
    let evaluation =
        acceptance.evaluate(&all([mesh(), waiting]), &found, evaluation.mesh.as_deref());
    assert!(of(&evaluation, "a").accepted, "{evaluation:?}");
}

#[test]
fn a_policy_that_proves_invalid_when_its_target_is_created_is_the_only_one_refused() {
    for targets in [json!([{ "kind": "Service", "name": "later" }]), json!([])] {
        let spec = json!({ "policies": WRONG, "targetRefs": targets });
        let waiting = document("AuthorizationPolicy", "waiting", 1, &spec);
        let documents = all([mesh(), waiting]);
        let mut acceptance = Acceptance::new("merlon-system");
        let before = acceptance.evaluate(&documents, &[], None).mesh.unwrap();

        let evaluation = acceptance.evaluate(&documents, &[service("later")], Some(&before));

        let verdict = of(&evaluation, "waiting");
        assert_eq!(
            (verdict.reason, verdict.enforced),
            ("Invalid", false),
            "{evaluation:?}"
        );
        assert!(of(&evaluation, "mesh").accepted, "{evaluation:?}");
        let later = "shop/later".parse().unwrap();
        assert!(
            evaluation.mesh.unwrap().service(&later).is_some(),
            "the Service is in the mesh"
        );
    }
}

#[test]
fn without_a_mesh_config_there_is_no_mesh() {
    let evaluation =
        Acceptance::new("merlon-system").evaluate(&all([policy("a", 1, RIGHT)]), &[], None);
    assert!(evaluation.mesh.is_none() && !of(&evaluation, "a").accepted);
    assert!(
        evaluation
            .problems
            .to_string()
            .contains("there is no MeshConfig")
    );
}

#[test]
fn a_mesh_config_of_another_namespace_is_ignored_regardless_of_its_content() {
    let spec = json!({ "trustDomain": "evil.test", "rootNamespace": "aaa" });
    let mut foreign = document_in("aaa", "MeshConfig", "mesh", 1, &spec);
    // It is ignored even if its status says that it was in force.
    foreign.in_force = Some(foreign.present.clone());
    for rejected in [false, true] {
        if rejected {
            let spec = json!({ "trustDomain": "not a name" });
            foreign.present = document_in("aaa", "MeshConfig", "mesh", 2, &spec).present;
        }
        // As after a start: no version is known to be valid.
        let mut acceptance = Acceptance::new("merlon-system");
        let evaluation =
            acceptance.evaluate(&all([foreign.clone(), mesh()]), &[service("orders")], None);
        let trust_domain = &evaluation.mesh.as_ref().unwrap().state().trust_domain;
        assert_eq!(trust_domain.to_string(), "x.test");
        let verdict = &evaluation.verdicts[&foreign.key];
        assert!(!verdict.accepted && !verdict.enforced);
        assert!(
            verdict.message.contains("configured in `merlon-system`"),
            "{}",
            verdict.message
        );
        assert!(evaluation.verdicts[&mesh().key].accepted);
        let in_force = acceptance.in_force();
        assert!(
            in_force.keys().all(|key| key.namespace != "aaa"),
            "{in_force:?}"
        );
    }
    // On its own it gives no mesh.
    let mut acceptance = Acceptance::new("merlon-system");
    let evaluation = acceptance.evaluate(&all([foreign]), &[], None);
    assert!(evaluation.mesh.is_none());
}
