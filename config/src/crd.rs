//! Custom resource definitions of Merlon's kinds, made of the same types as everything else that is said of them.
//!
//! A cluster takes less than JSON Schema says: no `$ref`, one type per value, no `additionalProperties: false` beside
//! `properties` (it drops unknown fields by itself, and tells of them), no types inside `oneOf`. So the schema of a type is
//! rewritten into that, and rules that it cannot say stand beside it in CEL.

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

/// A kind that lives in a cluster. `Workload` and `Service` do not: there, pods and Services say the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Kind {
    /// As it is written.
    pub kind: &'static str,
    /// In the path of its API, in lower case.
    pub plural: &'static str,
    /// In lower case.
    pub singular: &'static str,
    /// For who types it often.
    pub short: &'static str,
}

/// All of them.
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

/// Every definition with the name of its file: `<plural>.yaml`.
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
/// None that a definition could cause.
pub fn yaml(definition: &Value) -> Result<String, serde_saphyr::SerializeError> {
    serde_saphyr::to_string(definition)
}

/// A resource as the text that loading reads, with its texts as blocks, so that their lines are lines here too.
///
/// # Errors
/// None that JSON could cause.
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
            // With a definition goes every resource of its kind: no policy may end by an uninstallation.
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
    let condition = |name: &str, of: &str, says: &str| {
        json!({
            "name": name,
            "type": "string",
            "jsonPath": format!(".status.conditions[?(@.type==\"{of}\")].status"),
            "description": says,
        })
    };
    json!([
        condition("Accepted", "Accepted", "Whether it is right and in force."),
        condition(
            "Programmed",
            "Programmed",
            "Whether every proxy that it concerns enforces it."
        ),
        {
            "name": "Proxies",
            "type": "string",
            "jsonPath": ".status.proxies",
            "description": "How many proxies enforce it, of those that it concerns.",
        },
        {
            "name": "Age",
            "type": "date",
            "jsonPath": ".metadata.creationTimestamp",
        },
    ])
}

fn status() -> Value {
    let text = |says: &str| json!({ "type": "string", "description": says });
    let generation =
        |says: &str| json!({ "type": "integer", "format": "int64", "description": says });
    json!({
        "type": "object",
        "description": "What the control plane says of it.",
        "properties": {
            "observedGeneration": generation("The generation that all of this is about."),
            "proxies": text("How many proxies enforce it, of those that it concerns, as `2/3`."),
            "conditions": {
                "type": "array",
                "description": "`Accepted`: it is right and in force. `Programmed`: every proxy that it concerns enforces it.",
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
                            "description": "Whether it is so.",
                        },
                        "reason": text("Why, in one word that stays the same."),
                        "message": text("Why, for people: what is wrong, where, and how to mend it."),
                        "observedGeneration": generation("The generation that this is about."),
                        "lastTransitionTime": {
                            "type": "string",
                            "format": "date-time",
                            "description": "When `status` became what it is.",
                        },
                    },
                },
            },
            "inForce": {
                "type": "object",
                "description": "The last right version, which stays in force while the present one is wrong.",
                "properties": {
                    "generation": generation("Which."),
                    "spec": {
                        "type": "object",
                        "description": "What it says.",
                        "x-kubernetes-preserve-unknown-fields": true,
                    },
                },
            },
        },
    })
}

#[cfg(test)]
mod tests;
