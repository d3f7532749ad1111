//! How many schemas of a JSON Schema apply to one value, each because of another.
//!
//! The validator recurses once for each of them, so their number is bounded: otherwise a schema of references that refer to
//! references could exhaust any stack.

use std::collections::HashMap;

use percent_encoding::percent_decode_str;
use serde_json::Value;

/// Schemas that apply to one value, each because of another.
pub(super) const MAX_IN_PLACE: usize = 256;

/// Checks the bound.
///
/// # Errors
/// The schema exceeds it, or a schema applies to a value because of itself, which would never end.
pub(super) fn check(schema: &Value) -> Result<(), String> {
    let mut depths = Depths {
        root: schema,
        named: HashMap::new(),
        known: HashMap::new(),
    };
    depths.collect_names(schema);
    depths.all(schema)
}

struct Depths<'a> {
    root: &'a Value,
    /// The schemas with an anchor, and those with a URI of their own under the name "".
    named: HashMap<&'a str, Vec<&'a Value>>,
    /// `None`: it is being computed.
    known: HashMap<*const Value, Option<usize>>,
}

impl<'a> Depths<'a> {
    fn collect_names(&mut self, value: &'a Value) {
        for (keyword, under) in [
            ("$anchor", None),
            ("$dynamicAnchor", None),
            ("$id", Some("")),
        ] {
            if let Some(name) = value.get(keyword).and_then(Value::as_str) {
                self.named
                    .entry(under.unwrap_or(name))
                    .or_default()
                    .push(value);
            }
        }
        for child in children(value) {
            self.collect_names(child);
        }
    }

    fn all(&mut self, value: &'a Value) -> Result<(), String> {
        self.depth(value)?;
        children(value).try_for_each(|child| self.all(child))
    }

    fn depth(&mut self, schema: &'a Value) -> Result<usize, String> {
        match self.known.get(&std::ptr::from_ref(schema)) {
            Some(Some(depth)) => return Ok(*depth),
            Some(None) => {
                return Err(
                    "a schema refers to itself without a property or an item in between".to_owned(),
                );
            }
            None => {}
        }
        self.known.insert(schema, None);
        let mut depth = 0;
        for other in self.in_place(schema) {
            depth = depth.max(self.depth(other)? + 1);
        }
        if depth > MAX_IN_PLACE {
            return Err(format!(
                "more than {MAX_IN_PLACE} schemas apply to one value, each because of another"
            ));
        }
        self.known.insert(schema, Some(depth));
        Ok(depth)
    }

    /// The schemas that apply to the same value.
    fn in_place(&self, schema: &'a Value) -> Vec<&'a Value> {
        let mut all = Vec::new();
        for keyword in ["not", "if", "then", "else"] {
            all.extend(schema.get(keyword));
        }
        for keyword in ["allOf", "anyOf", "oneOf"] {
            all.extend(
                schema
                    .get(keyword)
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten(),
            );
        }
        let dependent = schema.get("dependentSchemas").and_then(Value::as_object);
        all.extend(dependent.into_iter().flat_map(serde_json::Map::values));
        for keyword in ["$ref", "$dynamicRef"] {
            let target = schema.get(keyword).and_then(Value::as_str);
            all.extend(
                target
                    .map(|target| self.targets(target))
                    .unwrap_or_default(),
            );
        }
        all
    }

    /// The schemas that a reference may lead to: more than it does, if it names a schema by its URI.
    fn targets(&self, reference: &str) -> Vec<&'a Value> {
        let (uri, fragment) = reference.split_once('#').unwrap_or((reference, ""));
        let roots = match uri {
            "" => vec![self.root],
            _ => self.named.get("").cloned().unwrap_or_default(),
        };
        if fragment.is_empty() {
            return roots;
        }
        if fragment.starts_with('/') {
            let fragment = percent_decode_str(fragment).decode_utf8_lossy();
            return roots
                .iter()
                .filter_map(|root| root.pointer(&fragment))
                .collect();
        }
        self.named.get(fragment).cloned().unwrap_or_default()
    }
}

fn children(value: &Value) -> impl Iterator<Item = &Value> {
    let members = value
        .as_object()
        .into_iter()
        .flat_map(serde_json::Map::values);
    members.chain(value.as_array().into_iter().flatten())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn chain(length: usize) -> Value {
        let link = |number: usize| {
            (
                format!("d{number}"),
                json!({ "allOf": [{ "$ref": format!("#/$defs/d{}", number + 1) }] }),
            )
        };
        let mut definitions: serde_json::Map<_, _> = (0..length).map(link).collect();
        definitions.insert(
            format!("d{length}"),
            json!({ "properties": { "a": { "$ref": "#/$defs/d0" } } }),
        );
        json!({ "$ref": "#/$defs/d0", "$defs": definitions })
    }

    #[test]
    fn a_chain_of_schemas_for_one_value_is_bounded() {
        check(&chain(127)).unwrap();
        let problem = check(&chain(128)).unwrap_err();
        assert_eq!(
            problem,
            "more than 256 schemas apply to one value, each because of another"
        );
        let nested = (0..300).fold(json!(true), |inner, _| json!({ "not": inner }));
        check(&nested).unwrap_err();
        // Properties and items are other values.
        let nested = (0..300).fold(
            json!(true),
            |inner, _| json!({ "items": { "properties": { "a": inner } } }),
        );
        check(&nested).unwrap();
    }

    #[test]
    fn a_schema_that_applies_because_of_itself_is_refused() {
        for schema in [
            json!({ "$ref": "#" }),
            json!({ "anyOf": [{ "type": "null" }, { "$ref": "#" }] }),
            json!({ "$defs": { "a": { "not": { "$ref": "#/$defs/b" } }, "b": { "if": { "$ref": "#/$defs/a" } } } }),
            json!({ "$anchor": "top", "allOf": [{ "$ref": "#top" }] }),
            json!({ "$defs": { "a%b": { "$ref": "#/$defs/a%25b" } } }),
            json!({ "$id": "https://x.test/y", "dependentSchemas": { "a": { "$ref": "https://x.test/y" } } }),
        ] {
            let problem = check(&schema).unwrap_err();
            assert!(problem.starts_with("a schema refers to itself"), "{schema}");
        }
        check(&json!({ "properties": { "a": { "$ref": "#" } }, "$dynamicAnchor": "n", "items": { "$dynamicRef": "#n" } })).unwrap();
    }
}
