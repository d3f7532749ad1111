//! Converts JSON Schema into a structural schema of Kubernetes.

use serde_json::{Map, Value, json};

/// Keywords that mean the same in both.
const SHARED_KEYWORDS: [&str; 11] = [
    "description",
    "enum",
    "maxItems",
    "maxLength",
    "maxProperties",
    "maximum",
    "minItems",
    "minLength",
    "minProperties",
    "minimum",
    "pattern",
];

/// Formats that the API server checks. It warns of others.
const FORMATS: [&str; 4] = ["date-time", "int32", "int64", "uri"];

/// The schema of `root`, without references and with one type per value.
pub(super) fn structural(root: &Value) -> Value {
    let none = Map::new();
    let definitions = root.get("$defs").and_then(Value::as_object);
    let mut out = Rewriter(definitions.unwrap_or(&none)).schema(root);
    if let Some(map) = out.as_object_mut() {
        map.remove("description");
    }
    out
}

struct Rewriter<'a>(&'a Map<String, Value>);

impl Rewriter<'_> {
    fn schema(&self, schema: &Value) -> Value {
        let Some(map) = schema.as_object() else {
            return anything();
        };
        let mut out = match map.get("$ref").and_then(Value::as_str) {
            Some(reference) => self.definition(reference),
            None => Map::new(),
        };
        if let Some(alternatives) = map.get("anyOf").or_else(|| map.get("oneOf")) {
            self.alternatives(alternatives, &mut out);
        }
        for key in SHARED_KEYWORDS {
            if let Some(value) = map.get(key) {
                out.insert(key.to_owned(), value.clone());
            }
        }
        if let Some(format) = map.get("format").and_then(Value::as_str)
            && FORMATS.contains(&format)
        {
            out.insert("format".to_owned(), format.into());
        }
        if let Some(value) = map.get("const") {
            out.insert("enum".to_owned(), json!([value]));
        }
        self.types(map, &mut out);
        if let Some(Value::Object(properties)) = map.get("properties") {
            let to = out.entry("properties").or_insert_with(|| json!({}));
            for (name, property) in properties {
                if let Some(to) = to.as_object_mut() {
                    to.insert(name.clone(), self.schema(property));
                }
            }
        }
        if let Some(required) = map.get("required") {
            out.insert("required".to_owned(), required.clone());
        }
        if let Some(items) = map.get("items") {
            out.insert("items".to_owned(), self.schema(items));
        }
        // `false` is the default: the API server drops unknown fields.
        if let Some(values @ Value::Object(_)) = map.get("additionalProperties") {
            out.insert("additionalProperties".to_owned(), self.schema(values));
        }
        let typed = ["type", "x-kubernetes-int-or-string", "enum"];
        if !typed.iter().any(|key| out.contains_key(*key)) {
            let preserve = "x-kubernetes-preserve-unknown-fields";
            out.insert(preserve.to_owned(), true.into());
        }
        Value::Object(out)
    }

    fn definition(&self, reference: &str) -> Map<String, Value> {
        let name = reference.rsplit('/').next().unwrap_or(reference);
        match self.0.get(name).map(|definition| self.schema(definition)) {
            Some(Value::Object(map)) => map,
            _ => Map::new(),
        }
    }

    fn types(&self, map: &Map<String, Value>, out: &mut Map<String, Value>) {
        let types: Vec<&str> = match map.get("type") {
            Some(Value::String(one)) => vec![one],
            Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).collect(),
            _ => return,
        };
        let types: Vec<&str> = types.into_iter().filter(|one| *one != "null").collect();
        match types.as_slice() {
            [one] => {
                out.insert("type".to_owned(), (*one).into());
            }
            ["string", "integer"] | ["integer", "string"] => {
                out.insert("x-kubernetes-int-or-string".to_owned(), true.into());
            }
            _ => {}
        }
    }

    /// Converts alternatives: an optional value becomes the value, constants become an enumeration, and several objects
    /// become an object with exactly one of their properties.
    fn alternatives(&self, alternatives: &Value, out: &mut Map<String, Value>) {
        let all: Vec<&Value> = alternatives.as_array().into_iter().flatten().collect();
        let null = |schema: &&Value| schema.get("type").and_then(Value::as_str) == Some("null");
        let real: Vec<&Value> = all.into_iter().filter(|schema| !null(schema)).collect();
        if let [one] = real.as_slice()
            && let Value::Object(schema) = self.schema(one)
        {
            out.extend(schema);
        } else if real.iter().all(|schema| schema.get("const").is_some()) {
            let names = real.iter().filter_map(|schema| schema.get("const"));
            out.insert("enum".to_owned(), names.cloned().collect());
            out.insert("type".to_owned(), "string".into());
        } else {
            let mut properties = Map::new();
            for schema in &real {
                if let Value::Object(schema) = self.schema(schema)
                    && let Some(Value::Object(own)) = schema.get("properties")
                {
                    properties.extend(own.clone());
                }
            }
            out.insert("type".to_owned(), "object".into());
            out.insert("properties".to_owned(), Value::Object(properties));
            out.insert("minProperties".to_owned(), 1.into());
            out.insert("maxProperties".to_owned(), 1.into());
        }
    }
}

fn anything() -> Value {
    json!({ "x-kubernetes-preserve-unknown-fields": true })
}
