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

/// The documents of two namespaces, each with a share of three policies.
fn shared(documents: impl IntoIterator<Item = Document>) -> BTreeMap<Key, Document> {
    let spec = json!({ "trustDomain": "x.test", "policiesPerNamespace": 3 });
    all([document("MeshConfig", "mesh", 1, &spec)]
        .into_iter()
        .chain(documents))
}

/// A document with policies of these names, which was created at this second.
fn policies(name: &str, generation: i64, created: i64, names: &[&str]) -> Document {
    let texts = names.iter();
    let texts: Vec<String> = texts
        .map(|id| RIGHT.replace("\"a\"", &format!("\"{id}\"")))
        .collect();
    let mut document = policy(name, generation, &texts.concat());
    document.created = jiff::Timestamp::from_second(created).ok();
    document
}

#[test]
fn the_newest_resources_beyond_the_share_of_a_namespace_are_too_many() {
    let found = [service("orders")];
    let older = policies("older", 1, 1, &["a", "b"]);
    let newer = policies("newer", 1, 2, &["c", "d"]);
    let limit = json!({ "limits": [{ "name": "l", "rate": { "requests": 1, "per": "1s" } }] });
    let mut newest = document("RateLimit", "newest", 1, &limit);
    newest.created = jiff::Timestamp::from_second(3).ok();
    let spec = json!({ "policies": RIGHT });
    let bank = document_in("bank", "AuthorizationPolicy", "of-bank", 1, &spec);
    let texts = ["e", "f", "g", "h"].map(|id| RIGHT.replace("\"a\"", &format!("\"{id}\"")));
    let spec = json!({ "policies": texts.concat() });
    let root = document_in("merlon-system", "AuthorizationPolicy", "of-root", 1, &spec);
    let evaluation = Acceptance::new("merlon-system").evaluate(
        &shared([newest, newer, older, bank, root]),
        &found,
        None,
    );
    assert!(of(&evaluation, "older").accepted);
    let refused = of(&evaluation, "newer");
    assert_eq!(
        (refused.accepted, refused.enforced, refused.reason),
        (false, false, "TooMany")
    );
    assert_eq!(
        refused.message,
        "spec: this resource counts as 2, so namespace `shop` would have 4 policies; its share is 3 (hint: delete policies that are not needed, or ask the platform team to raise `policiesPerNamespace` of the MeshConfig)"
    );
    // One more fits.
    assert_ne!(of(&evaluation, "newest").reason, "TooMany");
    assert_ne!(of(&evaluation, "of-bank").reason, "TooMany");
    assert_ne!(of(&evaluation, "of-root").reason, "TooMany");
}

#[test]
fn what_is_in_force_keeps_its_place_in_the_share_and_a_version_beyond_it_leaves_the_former_one() {
    let found = [service("orders")];
    let mut acceptance = Acceptance::new("merlon-system");
    let older = policies("older", 1, 1, &["a", "b"]);
    let newer = policies("newer", 1, 2, &["c"]);
    let first = acceptance.evaluate(&shared([older, newer.clone()]), &found, None);
    let before = first.mesh.unwrap();
    let grown = policies("older", 2, 1, &["a", "b", "d"]);
    let second = acceptance.evaluate(&shared([grown, newer]), &found, Some(&before));
    assert!(of(&second, "newer").accepted);
    let refused = of(&second, "older");
    assert_eq!(
        (refused.accepted, refused.enforced, refused.reason),
        (false, true, "TooMany")
    );
    assert_eq!(refused.in_force.as_ref().unwrap().generation, 1);
    let name = "shop/orders".parse().unwrap();
    assert_eq!(second.mesh.unwrap().service(&name), before.service(&name));
}

#[test]
fn a_version_with_fewer_policies_fits_even_if_the_share_became_smaller() {
    let found = [service("orders")];
    let mut acceptance = Acceptance::new("merlon-system");
    let names = ["a", "b", "c", "d", "e"];
    let large = policies("large", 1, 1, &names);
    let first = acceptance.evaluate(&all([mesh(), large.clone()]), &found, None);
    let before = first.mesh.unwrap();
    let second = acceptance.evaluate(&shared([large]), &found, Some(&before));
    assert!(of(&second, "large").accepted, "{second:?}");
    let smaller = policies("large", 2, 1, &names[..4]);
    let third = acceptance.evaluate(&shared([smaller]), &found, Some(&before));
    assert!(of(&third, "large").accepted, "{third:?}");
}

#[test]
fn admission_counts_as_the_evaluation_does() {
    let found = [service("orders")];
    let mut acceptance = Acceptance::new("merlon-system");
    // A policy that is not in force counts, too: its Service may appear at any time.
    let text = RIGHT.replace("\"a\"", "\"x\"");
    let spec =
        json!({ "policies": text, "targetRefs": [{ "kind": "Service", "name": "missing" }] });
    let waiting = document("AuthorizationPolicy", "waiting", 1, &spec);
    let documents = shared([policies("older", 1, 1, &["a"]), waiting]);
    let evaluation = acceptance.evaluate(&documents, &found, None);
    assert_eq!(of(&evaluation, "waiting").reason, "TargetNotFound");
    let check = |document: &Document| acceptance.shares().fits(document);
    assert_eq!(check(&policies("newer", 1, 2, &["c"])), Ok(()));
    let refused = check(&policies("newer", 1, 2, &["c", "d"])).unwrap_err();
    assert!(
        refused.contains("would have 4 policies; its share is 3"),
        "{refused}"
    );
    let grown = check(&policies("older", 2, 1, &["a", "b", "c"])).unwrap_err();
    assert!(
        grown.contains("would have 4 policies; its share is 3"),
        "{grown}"
    );
    assert_eq!(check(&policies("older", 2, 1, &["a", "b"])), Ok(()));
    assert_eq!(
        check(&document_in("bank", "RateLimit", "r", 1, &json!({}))),
        Ok(())
    );
}

#[test]
fn what_was_accepted_before_a_restart_keeps_its_place() {
    let found = [service("orders")];
    let mut large = policies("large", 1, 1, &["a", "b", "c", "d"]);
    let mut newest = policies("newest", 1, 3, &["f"]);
    (large.accepted, newest.accepted) = (true, true);
    let added = policies("added", 1, 2, &["e"]);
    let mut acceptance = Acceptance::new("merlon-system");
    let evaluation = acceptance.evaluate(&shared([large, newest, added]), &found, None);
    assert!(of(&evaluation, "large").accepted, "{evaluation:?}");
    assert!(of(&evaluation, "newest").accepted, "{evaluation:?}");
    assert_eq!(of(&evaluation, "added").reason, "TooMany");
}

#[test]
fn a_share_that_became_smaller_is_a_warning_of_the_mesh_config() {
    let mut acceptance = Acceptance::new("merlon-system");
    let documents = all([mesh(), policies("a", 1, 1, &["a", "b", "c"])]);
    acceptance.evaluate(&documents, &[service("orders")], None);
    let with = |share: u32| {
        let spec = json!({ "trustDomain": "x.test", "policiesPerNamespace": share });
        acceptance
            .shares()
            .exceeded_by(&document("MeshConfig", "mesh", 2, &spec))
    };
    assert_eq!(with(3), None);
    assert_eq!(
        with(2).unwrap(),
        "spec.policiesPerNamespace: namespace `shop` has 3 policies; it keeps them, and its users cannot add any"
    );
}

#[test]
fn a_long_resource_counts_as_several_policies() {
    let long = format!("// {}\n{RIGHT}", "x".repeat(9_000));
    let found = [service("orders")];
    let mut acceptance = Acceptance::new("merlon-system");
    let evaluation = acceptance.evaluate(&shared([policy("a", 1, &long)]), &found, None);
    assert!(of(&evaluation, "a").accepted, "{evaluation:?}");
    let refused = acceptance
        .shares()
        .fits(&policy("b", 1, RIGHT))
        .unwrap_err();
    assert!(refused.contains("would have 4 policies"), "{refused}");
}

#[test]
fn a_resource_that_breaks_the_compiler_does_not_stop_the_first_mesh() {
    // No resource of the set in force is blamed for it, and there is none in force yet.
    let conflict = [
        policies("a", 1, 1, &["same"]),
        policies("b", 1, 2, &["same"]),
    ];
    let evaluation = Acceptance::new("merlon-system").evaluate(
        &all([mesh()].into_iter().chain(conflict)),
        &[service("orders")],
        None,
    );
    assert!(evaluation.mesh.is_some());
}
