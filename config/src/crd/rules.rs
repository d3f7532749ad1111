//! CEL rules for what a schema cannot express. The API server rejects the same resources as loading, before storing them.

use serde_json::{Value, json};

/// Adds the rules of a kind to the schema of its `spec`.
pub(super) fn add(kind: &str, spec: &mut Value) {
    if kind == "MeshConfig" {
        let fixed = |field: &str, default: &str| {
            let now = format!("(has(self.{field}) ? self.{field} : '{default}')");
            json!({
                "rule": format!("{now} == {}", now.replace("self.", "oldSelf.")),
                "message": format!("`{field}` cannot change while the mesh runs: every identity depends on it"),
            })
        };
        put(
            spec,
            json!([
                fixed("trustDomain", ""),
                fixed("rootNamespace", "merlon-system")
            ]),
        );
    }
    let Some(targets) = spec.pointer_mut("/properties/targetRefs") else {
        return;
    };
    // The API server needs a bound to estimate the cost of the rules.
    if let Some(map) = targets.as_object_mut() {
        map.insert("maxItems".to_owned(), 64.into());
    }
    if let Some(target) = targets.get_mut("items") {
        put(
            target,
            json!([
                {
                    "rule": "!(self.kind in ['Service', 'Gateway']) || has(self.name)",
                    "message": "`name` is missing: to target the whole namespace, write `kind: Namespace`",
                },
                {
                    "rule": "self.kind != 'Mesh' || !has(self.name)",
                    "message": "a `Mesh` target has no `name`: remove `name`",
                },
            ]),
        );
    }
}

fn put(schema: &mut Value, rules: Value) {
    if let Some(map) = schema.as_object_mut() {
        map.insert("x-kubernetes-validations".to_owned(), rules);
    }
}
