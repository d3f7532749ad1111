//! JSON Schema of everything that users write: what editors check while one types. The text of each description is the
//! Rust documentation of its field.

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use crate::{
    bootstrap::{ControlPlaneBootstrap, ProxyBootstrap},
    resource::{
        AuthorizationPolicySpec, GATEWAY_API, GatewaySpec, HttpRouteSpec, MERLON, MeshConfigSpec,
        RateLimitSpec, RequestAuthenticationSpec, RequestValidationSpec, ServiceSpec, WorkloadSpec,
    },
};

/// Every schema with the name of its file: `<Kind>.json` for each kind, and one for each bootstrap.
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

/// Sorted, so that the files do not change with the order in which a feature of `serde_json` keeps its maps.
fn sorted(value: Value) -> Value {
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
            "status": { "description": "Passed over." },
        },
        "$defs": definitions,
    }))
}
