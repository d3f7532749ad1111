//! Custom resource definitions of Merlon's kinds, generated from the types in [`crate::resource`].
//!
//! Kubernetes accepts less than JSON Schema (structural schemas): no `$ref`, one type per value, no
//! `additionalProperties: false` beside `properties` (the API server drops unknown fields itself and warns of them), no
//! types inside `oneOf`. So the schema of a type is rewritten accordingly, and CEL rules check what it cannot express.

mod rules;
mod structural;

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Value, json};

use crate::{
    resource::{
        AuthorizationPolicySpec, MeshConfigSpec, RateLimitSpec, RequestAuthenticationSpec,
        RequestValidationSpec, SecretGrantSpec,
    },
    schema::sorted,
};

/// The API group of Merlon's kinds.
pub const GROUP: &str = "merlon.io";

/// The version of Merlon's kinds.
pub const VERSION: &str = "v1alpha1";

/// A kind with a custom resource definition. `Workload` and `Service` have none: in a cluster they are derived from pods
/// and Kubernetes Services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Kind {
    /// The kind.
    pub kind: &'static str,
    /// The plural name in the API's path, in lower case.
    pub plural: &'static str,
    /// The singular name, in lower case.
    pub singular: &'static str,
    /// The short name for `kubectl`.
    pub short: &'static str,
}

/// All kinds with a custom resource definition.
pub const CLUSTER_KINDS: [Kind; 6] = [
    Kind {
        kind: "AuthorizationPolicy",
        plural: "authorizationpolicies",
        singular: "authorizationpolicy",
        short: "authzpol",
    },
    Kind {
        kind: "MeshConfig",
        plural: "meshconfigs",
        singular: "meshconfig",
        short: "meshcfg",
    },
    Kind {
        kind: "RateLimit",
        plural: "ratelimits",
        singular: "ratelimit",
        short: "ratelim",
    },
    Kind {
        kind: "RequestAuthentication",
        plural: "requestauthentications",
        singular: "requestauthentication",
        short: "reqauth",
    },
    Kind {
        kind: "RequestValidation",
        plural: "requestvalidations",
        singular: "requestvalidation",
        short: "reqval",
    },
    Kind {
        kind: "SecretGrant",
        plural: "secretgrants",
        singular: "secretgrant",
        short: "secgrant",
    },
];

/// Every definition with the name of its file, `<plural>.yaml`.
pub fn definitions() -> Vec<(String, Value)> {
    CLUSTER_KINDS
        .iter()
        .map(|kind| {
            let file = format!("{}.yaml", kind.plural);
            (file, sorted(definition(kind)))
        })
        .collect()
}

/// A definition as YAML text.
///
/// # Errors
/// Does not occur for definitions.
pub fn yaml(definition: &Value) -> Result<String, serde_saphyr::SerializeError> {
    serde_saphyr::to_string(definition)
}

/// A resource as YAML text for loading. Multi-line strings are block scalars, so that their lines are lines of the text.
///
/// # Errors
/// Does not occur for JSON values.
pub fn document(
    kind: &str,
    (namespace, name): (&str, &str),
    spec: &Value,
) -> Result<String, serde_saphyr::SerializeError> {
    serde_saphyr::to_string(&json!({
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "kind": kind,
        "metadata": { "namespace": namespace, "name": name },
        "spec": spec,
    }))
}

fn definition(kind: &Kind) -> Value {
    let schema = match kind.kind {
        "AuthorizationPolicy" => of::<AuthorizationPolicySpec>(),
        "MeshConfig" => of::<MeshConfigSpec>(),
        "RateLimit" => of::<RateLimitSpec>(),
        "RequestAuthentication" => of::<RequestAuthenticationSpec>(),
        "SecretGrant" => of::<SecretGrantSpec>(),
        _ => of::<RequestValidationSpec>(),
    };
    let mut spec = structural::structural(&schema);
    rules::add(kind.kind, &mut spec);
    let description = schema.get("description").cloned();
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{}.{GROUP}", kind.plural),
            "labels": { "app.kubernetes.io/part-of": "merlon" },
            // Deleting a definition deletes all resources of its kind: `helm uninstall` must not delete policies.
            "annotations": { "helm.sh/resource-policy": "keep" },
        },
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind.kind,
                "listKind": format!("{}List", kind.kind),
                "plural": kind.plural,
                "singular": kind.singular,
                "shortNames": [kind.short],
                "categories": ["merlon"],
            },
            "versions": [{
                "name": VERSION,
                "served": true,
                "storage": true,
                "subresources": { "status": {} },
                "additionalPrinterColumns": columns(),
                "schema": { "openAPIV3Schema": {
                    "type": "object",
                    "description": description,
                    "required": ["spec"],
                    "properties": {
                        "apiVersion": { "type": "string" },
                        "kind": { "type": "string" },
                        "metadata": { "type": "object" },
                        "spec": spec,
                        "status": status(),
                    },
                } },
            }],
        },
    })
}

fn of<T: JsonSchema>() -> Value {
    SchemaSettings::draft2020_12()
        .into_generator()
        .into_root_schema_for::<T>()
        .to_value()
}

fn columns() -> Value {
    let condition = |name: &str, description: &str| {
        json!({
            "name": name,
            "type": "string",
            "jsonPath": format!(".status.conditions[?(@.type==\"{name}\")].status"),
            "description": description,
        })
    };
    json!([
        condition("Accepted", "Whether the resource is valid and in force."),
        condition("Programmed", "Whether every affected proxy enforces it."),
        {
            "name": "Proxies",
            "type": "string",
            "jsonPath": ".status.proxies",
            "description": "How many of the affected proxies enforce it.",
        },
        {
            "name": "Age",
            "type": "date",
            "jsonPath": ".metadata.creationTimestamp",
        },
    ])
}

fn status() -> Value {
    let text = |description: &str| json!({ "type": "string", "description": description });
    let generation = |description: &str| json!({ "type": "integer", "format": "int64", "description": description });
    json!({
        "type": "object",
        "description": "The status that the control plane reports.",
        "properties": {
            "observedGeneration": generation("The generation that this status refers to."),
            "proxies": text("How many of the affected proxies enforce the resource, for example `2/3`."),
            "conditions": {
                "type": "array",
                "description": "`Accepted`: the resource is valid and in force. `Programmed`: every affected proxy enforces it.",
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
                "items": {
                    "type": "object",
                    "required": ["type", "status", "reason", "message", "lastTransitionTime"],
                    "properties": {
                        "type": text("`Accepted` or `Programmed`."),
                        "status": {
                            "type": "string",
                            "enum": ["True", "False", "Unknown"],
                            "description": "Whether the condition holds.",
                        },
                        "reason": text("The reason, as a stable identifier."),
                        "message": text("The reason for humans: what is wrong, where, and how to fix it."),
                        "observedGeneration": generation("The generation that this condition refers to."),
                        "lastTransitionTime": {
                            "type": "string",
                            "format": "date-time",
                            "description": "When `status` last changed.",
                        },
                    },
                },
            },
            "inForce": {
                "type": "object",
                "description": "The version in force while the current one is not accepted. After a restart of the control plane, it is restored from here. If it cannot be in force, all requests to its targets are denied.",
                "properties": {
                    "generation": generation("The generation of that version."),
                    "spec": {
                        "type": "object",
                        "description": "The spec of that version.",
                        "x-kubernetes-preserve-unknown-fields": true,
                    },
                },
            },
        },
    })
}

#[cfg(test)]
mod tests;
