use std::{fs, path::Path};

use serde_json::Value;

use super::*;
use crate::resource::{KINDS, MERLON};

fn each(schema: &Value, look: &mut impl FnMut(&serde_json::Map<String, Value>)) {
    let Some(map) = schema.as_object() else {
        return;
    };
    look(map);
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = map.get(key) {
            each(inner, look);
        }
    }
    for inner in map
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        each(inner.1, look);
    }
}

fn schema(definition: &Value) -> &Value {
    definition
        .pointer("/spec/versions/0/schema/openAPIV3Schema")
        .unwrap()
}

#[test]
fn every_merlon_kind_has_a_definition_except_workload_and_service() {
    for (version, kind) in KINDS {
        let ours = version == MERLON && !["Workload", "Service"].contains(&kind);
        let found = CLUSTER_KINDS.iter().any(|known| known.kind == kind);
        assert_eq!(found, ours, "{kind}");
    }
    assert_eq!(format!("{GROUP}/{VERSION}"), MERLON);
}

#[test]
fn every_value_of_a_definition_has_one_type() {
    for (file, definition) in definitions() {
        each(schema(&definition), &mut |map| {
            let typed = map.get("type").is_some_and(Value::is_string);
            let free = [
                "x-kubernetes-int-or-string",
                "x-kubernetes-preserve-unknown-fields",
            ];
            let free = free.iter().any(|key| map.contains_key(*key));
            assert!(typed != free || (typed && free), "{file}: {map:?}");
            for forbidden in ["$ref", "oneOf", "anyOf", "const", "examples", "default"] {
                assert!(
                    !map.contains_key(forbidden),
                    "{file}: {forbidden} in {map:?}"
                );
            }
        });
    }
}

#[test]
fn a_size_may_be_a_number_and_a_choice_is_an_enumeration() {
    let all = definitions();
    let of = |file: &str, path: &str| {
        let (_, definition) = all.iter().find(|(name, _)| name == file).unwrap();
        let spec = schema(definition).pointer("/properties/spec/properties");
        spec.unwrap().pointer(path).cloned().unwrap()
    };
    let body = of("requestvalidations.yaml", "/limits/properties/body");
    assert_eq!(body.get("x-kubernetes-int-or-string"), Some(&true.into()));
    let kind = of("ratelimits.yaml", "/targetRefs/items/properties/kind");
    let kinds = serde_json::json!(["Service", "Gateway", "Namespace", "Mesh"]);
    assert_eq!(kind.get("enum"), Some(&kinds));
    let issuer = of("meshconfigs.yaml", "/certificates/properties/issuer");
    assert_eq!(issuer.get("maxProperties"), Some(&1.into()));
    assert!(
        issuer
            .pointer("/properties/vault/properties/role")
            .is_some()
    );
}

#[test]
fn the_chart_matches_the_types() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/merlon-crds/templates");
    let bless = std::env::var_os("MERLON_BLESS").is_some();
    for (file, definition) in definitions() {
        let text = yaml(&definition).unwrap();
        // The chart's files are templates, so they must not contain Helm syntax.
        assert!(!text.contains("{{"), "{file}");
        let path = folder.join(&file);
        if bless {
            fs::create_dir_all(&folder).unwrap();
            fs::write(&path, &text).unwrap();
        }
        let written = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            written == text,
            "{} does not match the types: run `MERLON_BLESS=1 cargo test -p merlon-config crd`",
            path.display()
        );
    }
    assert_eq!(fs::read_dir(&folder).unwrap().count(), definitions().len());
}

#[test]
fn a_position_in_a_policy_of_a_cluster_is_located() {
    let mesh = document(
        "MeshConfig",
        ("merlon-system", "mesh"),
        &json!({ "trustDomain": "x.test" }),
    )
    .unwrap();
    for text in [
        "@id(\"a\")\npermit (principal, action, resource);\n",
        "@id(\"a\")\n\n  permit (principal,\n\taction, resource)",
        "\n  @id(\"a\") permit (principal, action, resource);   \n\n",
    ] {
        let spec =
            json!({ "policies": text, "targetRefs": [{ "kind": "Service", "name": "later" }] });
        let policy = document("AuthorizationPolicy", ("shop", "a"), &spec).unwrap();
        let texts = [("mesh", mesh.clone()), ("policy", policy)];
        let resources = crate::load::read_cluster(texts, Vec::new());
        let resources = resources.into_result().unwrap();
        let (namespace, name) = ("shop".parse().unwrap(), "a".parse().unwrap());
        let policy = resources.find("AuthorizationPolicy", &namespace, &name);
        let policy = policy.unwrap();
        let crate::resource::Spec::AuthorizationPolicy(read) = &policy.spec else {
            panic!("{policy:?}")
        };
        assert_eq!(read.policies, text);
        let begin = resources.locate_in_text(policy, "spec.policies", 1, 1);
        let third = resources.locate_in_text(policy, "spec.policies", 3, 2);
        let (begin, third) = (begin.unwrap(), third.unwrap());
        assert_eq!(
            (third.line - begin.line, third.column - begin.column),
            (2, 1)
        );
        let warnings = resources.warnings.problems();
        assert!(
            warnings
                .iter()
                .any(|problem| problem.message.contains("`later`"))
        );
    }
}
