//! JSON Schema of all files that users write, for validation in editors. The description of each field is its Rust
//! documentation.

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use crate::{
    bootstrap::{ControlPlaneBootstrap, ProxyBootstrap},
    resource::{
        AuthorizationPolicySpec, GATEWAY_API, GatewaySpec, HttpRouteSpec, MERLON, MeshConfigSpec,
        RateLimitSpec, RequestAuthenticationSpec, RequestValidationSpec, SecretGrantSpec,
        ServiceSpec, WorkloadSpec,
    },
};

/// Every schema with the name of its file: `<Kind>.json` for each kind, and one for each bootstrap file.
pub fn schemas() -> Vec<(&'static str, Value)> {
    vec![
        (
            "MeshConfig.json",
            resource::<MeshConfigSpec>(MERLON, "MeshConfig"),
        ),
        (
            "Workload.json",
            resource::<WorkloadSpec>(MERLON, "Workload"),
        ),
        ("Service.json", resource::<ServiceSpec>(MERLON, "Service")),
        (
            "AuthorizationPolicy.json",
            resource::<AuthorizationPolicySpec>(MERLON, "AuthorizationPolicy"),
        ),
        (
            "RequestAuthentication.json",
            resource::<RequestAuthenticationSpec>(MERLON, "RequestAuthentication"),
        ),
        (
            "RateLimit.json",
            resource::<RateLimitSpec>(MERLON, "RateLimit"),
        ),
        (
            "RequestValidation.json",
            resource::<RequestValidationSpec>(MERLON, "RequestValidation"),
        ),
        (
            "SecretGrant.json",
            resource::<SecretGrantSpec>(MERLON, "SecretGrant"),
        ),
        (
            "Gateway.json",
            resource::<GatewaySpec>(GATEWAY_API, "Gateway"),
        ),
        (
            "HTTPRoute.json",
            resource::<HttpRouteSpec>(GATEWAY_API, "HTTPRoute"),
        ),
        ("proxy.json", plain::<ProxyBootstrap>()),
        ("control-plane.json", plain::<ControlPlaneBootstrap>()),
    ]
}

fn plain<T: JsonSchema>() -> Value {
    let schema = SchemaSettings::draft2020_12()
        .into_generator()
        .into_root_schema_for::<T>();
    sorted(schema.to_value())
}

/// Sorts all maps, so that the files do not depend on the order that a feature of `serde_json` selects.
pub(crate) fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<(String, Value)> = map
                .into_iter()
                .map(|(key, value)| (key, sorted(value)))
                .collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(entries.into_iter().collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        other => other,
    }
}

/// The whole document around a kind's `spec`.
fn resource<T: JsonSchema>(version: &str, kind: &str) -> Value {
    let mut spec = plain::<T>();
    let mut part = |name: &str| spec.as_object_mut().and_then(|map| map.remove(name));
    let definitions = part("$defs").unwrap_or_else(|| Value::Object(Map::new()));
    let description = part("description");
    let _ = (part("$schema"), part("title"));
    let text_map = json!({ "type": "object", "additionalProperties": { "type": "string" } });
    sorted(json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": kind,
        "description": description,
        "type": "object",
        "additionalProperties": false,
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "properties": {
            "apiVersion": { "const": version },
            "kind": { "const": kind },
            "metadata": {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": { "type": "string", "description": "Unique within kind and namespace." },
                    "namespace": { "type": "string", "default": "default" },
                    "labels": text_map,
                    "annotations": text_map,
                },
            },
            "spec": spec,
            "status": { "description": "Ignored." },
        },
        "$defs": definitions,
    }))
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::resource::KINDS;

    #[test]
    fn every_kind_has_a_schema() {
        for (_, kind) in KINDS {
            let file = format!("{kind}.json");
            assert!(schemas().iter().any(|(name, _)| *name == file), "{file}");
        }
    }

    #[test]
    fn the_files_in_schema_match_the_types() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("schema");
        let bless = std::env::var_os("MERLON_BLESS").is_some();
        for (name, schema) in schemas() {
            let text = format!("{schema:#}\n");
            let path = folder.join(name);
            if bless {
                fs::create_dir_all(&folder).unwrap();
                fs::write(&path, &text).unwrap();
            }
            let written = fs::read_to_string(&path).unwrap_or_default();
            assert!(
                written == text,
                "{} does not match the types: run `MERLON_BLESS=1 cargo test -p merlon-config schema`",
                path.display()
            );
        }
        assert_eq!(fs::read_dir(&folder).unwrap().count(), schemas().len());
    }

    #[test]
    fn every_field_has_a_description() {
        fn undescribed(path: &str, schema: &Value, found: &mut Vec<String>) {
            let Some(map) = schema.as_object() else {
                return;
            };
            if let Some(Value::Object(fields)) = map.get("properties") {
                for (name, field) in fields {
                    let path = format!("{path}.{name}");
                    let described = ["description", "$ref", "const"]
                        .iter()
                        .any(|key| field.get(key).is_some());
                    let known = ["metadata", "labels", "annotations", "namespace", "spec"]
                        .contains(&name.as_str());
                    if !described && !known {
                        found.push(path.clone());
                    }
                    undescribed(&path, field, found);
                }
            }
            if let Some(Value::Object(definitions)) = map.get("$defs") {
                for (name, definition) in definitions {
                    undescribed(&format!("{path}#{name}"), definition, found);
                }
            }
        }
        let mut found = Vec::new();
        for (name, schema) in schemas() {
            undescribed(name, &schema, &mut found);
        }
        assert!(found.is_empty(), "without a description: {found:?}");
    }
}
