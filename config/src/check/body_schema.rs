//! Schemas whose comparison with a body can take exponentially many steps.

use std::collections::HashSet;

use serde_json::Value;

/// Keywords whose value is no schema.
const DATA: [&str; 5] = ["const", "enum", "default", "examples", "required"];

/// Values that are visited at most, so that the check itself takes little time.
const MAX_VISITS: usize = 1_000_000;

/// The JSON pointer and the keyword of alternatives of which more than one leads back to them: each level of a wrong body is
/// compared with each of them.
pub(super) fn exponential(schema: &Value) -> Option<(String, &'static str)> {
    let mut visits = 0;
    let mut open = vec![(schema, "#".to_owned())];
    while let Some((value, place)) = open.pop() {
        visits += 1;
        for keyword in ["anyOf", "oneOf", "allOf"] {
            let branches = value.get(keyword).and_then(Value::as_array);
            let mut recursive = 0;
            for branch in branches.into_iter().flatten() {
                recursive += usize::from(leads_to(schema, branch, value, &mut visits));
                if recursive > 1 {
                    return Some((place, keyword));
                }
            }
        }
        if visits > MAX_VISITS {
            return None;
        }
        for (step, child) in children(value) {
            open.push((child, format!("{place}/{step}")));
        }
    }
    None
}

/// Whether a schema contains or refers to another one, also over several references.
fn leads_to(root: &Value, from: &Value, to: &Value, visits: &mut usize) -> bool {
    let mut seen = HashSet::new();
    let mut open = vec![from];
    while let Some(value) = open.pop() {
        if std::ptr::eq(value, to) {
            return true;
        }
        *visits += 1;
        if *visits > MAX_VISITS || !seen.insert(std::ptr::from_ref(value)) {
            continue;
        }
        let target = value.get("$ref").and_then(Value::as_str);
        open.extend(target.and_then(|target| root.pointer(target.strip_prefix('#')?)));
        open.extend(children(value).map(|(_, child)| child));
    }
    false
}

/// The schemas in a schema, and what contains them, with the last step of their JSON pointer.
fn children(value: &Value) -> impl Iterator<Item = (String, &Value)> {
    let members = value.as_object().into_iter().flatten();
    let members = members.filter(|(name, _)| !DATA.contains(&name.as_str()));
    let members = members.map(|(name, child)| (name.replace('~', "~0").replace('/', "~1"), child));
    let items = value.as_array().into_iter().flatten().enumerate();
    members.chain(items.map(|(number, child)| (number.to_string(), child)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn recursive_alternatives_are_found() {
        let node = |branches: Value| json!({ "$ref": "#/$defs/node", "$defs": { "node": { "anyOf": branches } } });
        let deeper = json!({ "properties": { "a": { "$ref": "#/$defs/node" } } });
        let twice = node(json!([{ "type": "null" }, deeper, deeper]));
        assert_eq!(
            exponential(&twice),
            Some(("#/$defs/node".to_owned(), "anyOf"))
        );
        let whole = json!({ "oneOf": [{ "items": { "$ref": "#" } }, { "prefixItems": [{ "$ref": "#" }] }] });
        assert_eq!(exponential(&whole), Some(("#".to_owned(), "oneOf")));
        let over_others = json!({
            "properties": { "tree": { "allOf": [{ "$ref": "#/$defs/x" }, { "not": { "$ref": "#/$defs/x" } }] } },
            "$defs": { "x": { "items": { "$ref": "#/$defs/y" } }, "y": { "$ref": "#/properties/tree" } },
        });
        assert_eq!(
            exponential(&over_others),
            Some(("#/properties/tree".to_owned(), "allOf"))
        );
    }

    #[test]
    fn other_schemas_are_not() {
        for schema in [
            json!(true),
            json!({ "anyOf": [{ "type": "null" }, { "items": { "$ref": "#" } }] }),
            json!({ "anyOf": [{ "$ref": "#/$defs/a" }, { "$ref": "#/$defs/a" }], "$defs": { "a": { "type": "string" } } }),
            json!({ "const": { "anyOf": [{ "$ref": "#" }, { "$ref": "#" }] } }),
            json!({ "anyOf": [{ "$ref": "elsewhere" }, { "$ref": "#missing" }, { "$ref": 7 }] }),
        ] {
            assert_eq!(exponential(&schema), None, "{schema}");
        }
    }

    #[test]
    fn a_large_schema_is_searched_within_a_bound() {
        let branch = json!({ "items": { "$ref": "#/properties/last" } });
        let alternatives = json!({ "anyOf": vec![branch; 50] });
        let many: serde_json::Map<_, _> = (0..5_000)
            .map(|number| (format!("p{number}"), alternatives.clone()))
            .collect();
        assert_eq!(exponential(&json!({ "properties": many })), None);
    }
}
