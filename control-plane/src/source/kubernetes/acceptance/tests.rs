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

/// Declares the claim that [`NEEDS_CLAIM`] reads.
fn tokens() -> Document {
    authentication("shop", "tokens", "https://id.test", "Long")
}

fn authentication(namespace: &str, name: &str, issuer: &str, level: &str) -> Document {
    document_in(
        namespace,
        "RequestAuthentication",
        name,
        1,
        &json!({ "issuers": [{
            "name": "customers", "issuer": issuer, "audiences": ["shop"],
            "claims": { "level": level },
        }] }),
    )
}

const NEEDS_CLAIM: &str = "@id(\"a\")\nforbid (principal, action, resource)\n\
     when { context has user && context.user.claims has level && context.user.claims.level == 1 };";

/// The document after a replica wrote this verdict to its status.
fn with_status(mut document: Document, verdict: &Verdict) -> Document {
    document.accepted = verdict.accepted;
    document.in_force.clone_from(&verdict.in_force);
    document
}

/// Whether a Service of the mesh denies all requests because of a resource that cannot be in force.
fn denies(mesh: &Mesh, service: &str) -> bool {
    let service = mesh.service(&format!("shop/{service}").parse().unwrap());
    let state = String::from_utf8(service.unwrap().json().to_vec()).unwrap();
    state.contains("not-in-force-")
}

#[test]
fn a_deleted_resource_stays_in_force_while_another_needs_it_also_after_a_restart() {
    let mut acceptance = Acceptance::new("merlon-system");
    let found = [service("orders")];
    let needs = policy("a", 1, NEEDS_CLAIM);
    let first = acceptance.evaluate(&all([mesh(), tokens(), needs.clone()]), &found, None);
    assert!(of(&first, "a").accepted, "{first:?}");
    assert_eq!(acceptance.retained(), Some(BTreeMap::new()));
    let before = first.mesh.unwrap();

    let second = acceptance.evaluate(&all([mesh(), needs.clone()]), &found, Some(&before));

    let verdict = of(&second, "a");
    assert_eq!((verdict.accepted, verdict.reason), (false, "Conflicted"));
    assert!(verdict.message.contains("tokens"), "{verdict:?}");
    let name = "shop/orders".parse().unwrap();
    assert_eq!(
        second.mesh.as_ref().unwrap().service(&name),
        before.service(&name)
    );
    let retained = acceptance.retained().unwrap();
    assert!(
        retained.keys().all(|key| key.name == "tokens"),
        "{retained:?}"
    );
    let kept = with_status(needs, verdict);

    let mut restarted = Acceptance::new("merlon-system");
    restarted.set_retained(retained.clone());
    let third = restarted.evaluate(&all([mesh(), kept]), &found, None);
    assert_eq!(of(&third, "a"), verdict);
    assert_eq!(
        third.mesh.as_ref().unwrap().service(&name),
        before.service(&name)
    );
    assert_eq!(restarted.retained(), Some(retained));

    // Once nothing needs it, it is gone.
    let fourth = restarted.evaluate(&all([mesh()]), &found, third.mesh.as_deref());
    assert!(fourth.mesh.is_some());
    assert_eq!(restarted.retained(), Some(BTreeMap::new()));
}

#[test]
fn what_was_in_force_before_a_restart_and_is_no_longer_valid_denies_its_targets_until_it_is_corrected()
 {
    let limit = json!({ "limits": [{ "name": "l", "rate": { "requests": 1, "per": "1s" } }],
        "targetRefs": [{ "kind": "Service", "name": "carts" }] });
    let mut wrong_limit = limit.clone();
    wrong_limit["limits"][0]["rate"]["per"] = json!("never");
    let spec = |text: &str| json!({ "policies": text, "targetRefs": [{ "kind": "Service", "name": "orders" }] });
    let of_orders =
        |generation, text: &str| document("AuthorizationPolicy", "a", generation, &spec(text));
    let mut accepted = [
        of_orders(1, WRONG),
        document("RateLimit", "l", 1, &wrong_limit),
    ];
    for document in &mut accepted {
        document.accepted = true;
    }
    let [policy, limited] = accepted;
    let found = ["orders", "carts", "other"].map(service);
    let mut acceptance = Acceptance::new("merlon-system");

    let first = acceptance.evaluate(&all([mesh(), policy.clone(), limited]), &found, None);

    let denied: Vec<String> = first.denied.keys().map(Key::to_string).collect();
    assert_eq!(denied, ["AuthorizationPolicy/shop/a", "RateLimit/shop/l"]);
    let verdict = of(&first, "a");
    assert_eq!(
        (
            verdict.accepted,
            verdict.enforced,
            verdict.denied,
            verdict.reason
        ),
        (false, false, true, "Invalid")
    );
    let in_force = first.mesh.clone().unwrap();
    assert!(denies(&in_force, "orders") && denies(&in_force, "carts"));
    assert!(!denies(&in_force, "other"));

    // The status of another replica keeps it.
    let kept = with_status(policy.clone(), verdict);
    let again = Acceptance::new("merlon-system").evaluate(&all([mesh(), kept]), &found, None);
    assert!(denies(&again.mesh.unwrap(), "orders"));

    let limited = document("RateLimit", "l", 2, &limit);
    let second = acceptance.evaluate(&all([mesh(), policy, limited]), &found, Some(&in_force));
    let second = second.mesh.unwrap();
    assert!(denies(&second, "orders") && !denies(&second, "carts"));
    let documents = all([mesh(), of_orders(2, RIGHT)]);
    let third = acceptance.evaluate(&documents, &found, Some(&second));
    assert!(of(&third, "a").accepted, "{third:?}");
    assert!(third.denied.is_empty() && !denies(&third.mesh.unwrap(), "orders"));
}

#[test]
fn what_is_no_longer_valid_because_a_service_changed_denies_it_and_stops_no_other_change() {
    // The claim is needed for the Service only, and the declaration is deleted while there is none.
    let needs = document(
        "AuthorizationPolicy",
        "a",
        1,
        &json!({ "policies": NEEDS_CLAIM, "targetRefs": [{ "kind": "Service", "name": "orders" }] }),
    );
    let mut acceptance = Acceptance::new("merlon-system");
    let (with, without) = ([service("orders"), service("carts")], [service("carts")]);
    let first = acceptance.evaluate(&all([mesh(), tokens(), needs.clone()]), &with, None);
    let second = acceptance.evaluate(
        &all([mesh(), tokens(), needs.clone()]),
        &without,
        first.mesh.as_deref(),
    );
    assert_eq!(of(&second, "a").reason, "TargetNotFound");
    let third = acceptance.evaluate(
        &all([mesh(), needs.clone()]),
        &without,
        second.mesh.as_deref(),
    );
    assert_eq!(acceptance.retained(), Some(BTreeMap::new()));

    let other = policy("other", 1, &RIGHT.replace("\"a\"", "\"b\""));
    let documents = all([mesh(), needs.clone(), other]);
    let fourth = acceptance.evaluate(&documents, &with, third.mesh.as_deref());

    assert!(of(&fourth, "a").denied, "{fourth:?}");
    assert!(of(&fourth, "other").accepted, "{fourth:?}");
    assert!(denies(fourth.mesh.as_ref().unwrap(), "orders"));
    assert!(!denies(fourth.mesh.as_ref().unwrap(), "carts"));

    // The declaration corrects it, although the policy has not changed.
    let documents = all([mesh(), needs, tokens()]);
    let fifth = acceptance.evaluate(&documents, &with, fourth.mesh.as_deref());
    assert!(of(&fifth, "a").accepted, "{fifth:?}");
    assert!(!denies(&fifth.mesh.unwrap(), "orders"));
}

#[test]
fn of_two_conflicting_resources_the_one_in_force_before_a_restart_stays() {
    let mut older = policies("b", 1, 1, &["same"]);
    let newer = policies("a", 1, 2, &["same"]);
    older.accepted = true;
    let found = [service("orders")];
    let documents = all([mesh(), older, newer]);
    let evaluation = Acceptance::new("merlon-system").evaluate(&documents, &found, None);
    assert!(of(&evaluation, "b").accepted, "{evaluation:?}");
    let rejected = of(&evaluation, "a");
    assert!(
        !rejected.accepted && !rejected.enforced && !rejected.denied,
        "{evaluation:?}"
    );
}

#[test]
fn the_root_namespace_takes_precedence_and_what_contradicts_it_denies_its_targets() {
    let found = [service("orders")];
    let theirs = authentication("shop", "theirs", "https://id.test", "Long");
    let bystander = policy("bystander", 1, RIGHT);
    let mut acceptance = Acceptance::new("merlon-system");
    let documents = all([mesh(), theirs.clone(), bystander.clone()]);
    let first = acceptance.evaluate(&documents, &found, None);
    let before = first.mesh.unwrap();
    let both = |root: Document| all([mesh(), theirs.clone(), bystander.clone(), root]);
    for (issuer, level) in [
        ("https://other.test", "Long"),
        ("https://id.test", "String"),
    ] {
        let mut root = authentication("merlon-system", "ours", issuer, level);
        let mut spec = root.present.spec.clone();
        spec["targetRefs"] = json!([{ "kind": "Mesh" }]);
        root = document_in("merlon-system", "RequestAuthentication", "ours", 1, &spec);
        let mut acceptance = Acceptance::new("merlon-system");
        acceptance.evaluate(&documents, &found, None);
        // Admission warns of it, and does not refuse it.
        let in_force = acceptance.in_force();
        let mesh = ("merlon-system", Some(&*before));
        let warnings = dry_run(&mut Compiler::default(), mesh, &found, &in_force, &root);
        let warnings = warnings.unwrap();
        assert!(
            warnings[0]
                .contains("`RequestAuthentication/shop/theirs` cannot be in force with this"),
            "{warnings:?}"
        );

        let second = acceptance.evaluate(&both(root.clone()), &found, Some(&before));

        assert!(of(&second, "ours").accepted, "{second:?}");
        let theirs = of(&second, "theirs");
        assert_eq!(
            (theirs.reason, theirs.denied),
            ("Conflicted", true),
            "{second:?}"
        );
        assert!(of(&second, "bystander").accepted, "{second:?}");
        assert!(denies(second.mesh.as_ref().unwrap(), "orders"));
        // It stays so: with the next change, after a restart, and until one of the two is gone.
        let third = acceptance.evaluate(&both(root.clone()), &found, second.mesh.as_deref());
        assert_eq!(third.verdicts, second.verdicts);
        let kept = both(root.clone()).into_values().map(|document| {
            let verdict = &second.verdicts[&document.key];
            with_status(document, verdict)
        });
        let mut restarted = Acceptance::new("merlon-system");
        let fourth = restarted.evaluate(&all(kept), &found, None);
        assert!(of(&fourth, "ours").accepted, "{fourth:?}");
        assert!(of(&fourth, "theirs").denied, "{fourth:?}");
        let fifth = restarted.evaluate(&documents, &found, fourth.mesh.as_deref());
        assert!(of(&fifth, "theirs").accepted, "{fifth:?}");
        assert!(!denies(&fifth.mesh.unwrap(), "orders"));
    }
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
            in_force.versions.keys().all(|key| key.namespace != "aaa"),
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

#[test]
fn many_invalid_resources_of_a_namespace_do_not_stall_the_others() {
    // The declaration is deleted and stays in force, so all changes are tried by precedence from now on.
    let mut acceptance = Acceptance::new("merlon-system");
    let found = [service("orders")];
    let needs = policy("needs", 1, NEEDS_CLAIM);
    let first = acceptance.evaluate(&all([mesh(), tokens(), needs.clone()]), &found, None);
    let many: Vec<Document> = (0..120)
        .map(|number| match number % 3 {
            // Invalid by itself, in conflict with another one, and without a target.
            0 => policy(&format!("wrong-{number}"), 1, WRONG),
            1 => policy(
                &format!("conflict-{number}"),
                1,
                &RIGHT.replace("\"a\"", "\"same\""),
            ),
            _ => {
                let targets = json!([{ "kind": "Service", "name": "missing" }]);
                let spec = json!({ "policies": WRONG, "targetRefs": targets });
                document(
                    "AuthorizationPolicy",
                    &format!("waiting-{number}"),
                    1,
                    &spec,
                )
            }
        })
        .collect();
    let spec = json!({ "policies": RIGHT });
    let bank = document_in("bank", "AuthorizationPolicy", "of-bank", 1, &spec);
    let documents = all([mesh(), needs, bank].into_iter().chain(many));
    let mut running = first.mesh;
    for _ in 0..2 {
        let evaluation = acceptance.evaluate(&documents, &found, running.as_deref());
        assert_eq!(of(&evaluation, "needs").reason, "Conflicted");
        assert_ne!(of(&evaluation, "of-bank").reason, "Conflicted");
        assert_eq!(of(&evaluation, "wrong-0").reason, "Invalid");
        assert_eq!(of(&evaluation, "waiting-2").reason, "TargetNotFound");
        assert!(
            evaluation.compilations <= 100,
            "{}",
            evaluation.compilations
        );
        running = evaluation.mesh;
    }
}

#[test]
fn many_deleted_resources_that_are_needed_do_not_stall_the_others() {
    let mut acceptance = Acceptance::new("merlon-system");
    let (mut found, mut needed, mut others) = (Vec::new(), Vec::new(), vec![mesh()]);
    for number in 0..40 {
        let name = format!("s{number}");
        found.push(service(&name));
        let targets = json!([{ "kind": "Service", "name": name }]);
        let mut spec = tokens().present.spec;
        spec["targetRefs"] = targets.clone();
        spec["issuers"][0]["claims"] = json!({ format!("level{number}"): "Long" });
        needed.push(document("RequestAuthentication", &name, 1, &spec));
        let text = NEEDS_CLAIM.replace("\"a\"", &format!("\"{name}\""));
        let text = text.replace("level", &format!("level{number}"));
        let spec = json!({ "policies": text, "targetRefs": targets });
        others.push(document("AuthorizationPolicy", &name, 1, &spec));
    }
    let before = all(others.iter().chain(&needed).cloned());
    let first = acceptance.evaluate(&before, &found, None);
    assert!(
        first.verdicts.values().all(|verdict| verdict.accepted),
        "{first:?}"
    );
    let after = all(others);
    let mut running = first.mesh;
    for _ in 0..2 {
        let evaluation = acceptance.evaluate(&after, &found, running.as_deref());
        assert!(evaluation.compilations <= 30, "{}", evaluation.compilations);
        assert!(evaluation.denied.is_empty(), "{evaluation:?}");
        assert_eq!(acceptance.retained().unwrap().len(), 40);
        running = evaluation.mesh;
    }
}
