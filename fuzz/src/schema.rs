//! Bodies: JSON and JSON Schema.

use merlon_config::snapshot::Attached;
use merlon_policy::{service::ServicePolicy, validate::json::parse};
use serde_json::{Value, json as value};

use crate::{
    input::Input,
    policy::{MESH, orders},
};

/// JSON that the strict parser accepts has the same value in serde_json.
pub(crate) fn json(bytes: &[u8]) {
    if let Ok(value) = parse(bytes) {
        assert_eq!(serde_json::from_slice::<Value>(bytes).ok(), Some(value));
    }
}

/// A body is accepted only if the `jsonschema` crate accepts it by itself, and if a second validator, which knows only
/// a part of the keywords, does. What violates the schema for one violates it for the others.
pub(crate) fn schema(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (schema, body) = (input.part(), input.rest());
    let Ok(schema) = serde_json::from_slice::<Value>(schema) else {
        return;
    };
    let validation =
        value!({ "from": "shop/shape", "spec": { "routes": [{ "path": "/", "body": schema }] } });
    let Ok(validation) = serde_json::from_value::<Attached<_>>(validation) else {
        return;
    };
    let mut service = orders();
    service.validation = vec![validation];
    let policy = match ServicePolicy::compile(&service, &MESH) {
        Ok(policy) => policy,
        Err(problems) => return assert!(!problems.is_empty()),
    };
    let route = policy.route("POST", "/");
    let rule = policy.body_rule(&route).expect("the route has a schema");
    let result = rule.check(body, Some("application/json"));
    let violates = result.as_ref().is_err_and(|violation| {
        violation
            .detail
            .starts_with("the body does not match its schema")
    });
    let Ok(body) = serde_json::from_slice::<Value>(body) else {
        return assert!(result.is_err());
    };
    if result.is_err() && !violates {
        return;
    }
    let other = jsonschema::options()
        .with_draft(jsonschema::Draft::Draft202012)
        .with_pattern_options(jsonschema::PatternOptions::regex())
        .should_validate_formats(true)
        .offline()
        .build(&schema)
        .expect("the same schema");
    assert_eq!(other.is_valid(&body), !violates, "{schema} and {body}");
    if let Some(valid) = model(&schema, &body) {
        assert_eq!(valid, !violates, "{schema} and {body}");
    }
}

/// Whether `body` is valid; `None` for a schema with a keyword that is not known here, or with numbers that are not
/// small integers.
fn model(schema: &Value, body: &Value) -> Option<bool> {
    let keywords = match schema {
        Value::Bool(all) => return Some(*all),
        Value::Object(keywords) => keywords,
        _ => return None,
    };
    if !is_plain(body) {
        return None;
    }
    let mut valid = true;
    for (keyword, argument) in keywords {
        if !is_plain(argument) {
            return None;
        }
        let length = |size: Option<usize>, fits: fn(u64, u64) -> bool| {
            let limit = argument.as_u64()?;
            Some(size.is_none_or(|size| fits(size as u64, limit)))
        };
        let at_least = |own: u64, limit: u64| own >= limit;
        let at_most = |own: u64, limit: u64| own <= limit;
        let (list, map) = (body.as_array(), body.as_object());
        let chars = body.as_str().map(|text| text.chars().count());
        let each = |of: &[Value]| {
            of.iter()
                .map(|one| model(one, body))
                .collect::<Option<Vec<_>>>()
        };
        valid &= match keyword.as_str() {
            "type" => match argument {
                Value::String(name) => is_a(body, name),
                Value::Array(names) => names
                    .iter()
                    .any(|name| is_a(body, name.as_str().unwrap_or_default())),
                _ => return None,
            },
            "enum" => argument.as_array()?.contains(body),
            "const" => argument == body,
            "minLength" => length(chars, at_least)?,
            "maxLength" => length(chars, at_most)?,
            "minItems" => length(list.map(Vec::len), at_least)?,
            "maxItems" => length(list.map(Vec::len), at_most)?,
            "minProperties" => length(map.map(serde_json::Map::len), at_least)?,
            "maxProperties" => length(map.map(serde_json::Map::len), at_most)?,
            "minimum" => body
                .as_i64()
                .is_none_or(|own| Some(own) >= argument.as_i64()),
            "maximum" => body
                .as_i64()
                .is_none_or(|own| Some(own) <= argument.as_i64()),
            "required" => {
                let names = argument.as_array()?;
                let there = |name: &Value| {
                    map.is_none_or(|map| map.contains_key(name.as_str().unwrap_or_default()))
                };
                names.iter().all(there)
            }
            "properties" => {
                let properties = argument.as_object()?;
                let mut all = true;
                for (name, property) in properties {
                    let own = map.and_then(|map| map.get(name));
                    all &= own.map_or(Some(true), |own| model(property, own))?;
                }
                all
            }
            "additionalProperties" if !keywords.contains_key("patternProperties") => {
                let known = keywords.get("properties").and_then(Value::as_object);
                let mut all = true;
                for (name, own) in map.into_iter().flatten() {
                    all &= known.is_some_and(|known| known.contains_key(name))
                        || model(argument, own)?;
                }
                all
            }
            "items" if !keywords.contains_key("prefixItems") => {
                let mut all = true;
                for own in list.into_iter().flatten() {
                    all &= model(argument, own)?;
                }
                all
            }
            "allOf" => each(argument.as_array()?)?.iter().all(|valid| *valid),
            "anyOf" => each(argument.as_array()?)?.iter().any(|valid| *valid),
            "oneOf" => {
                each(argument.as_array()?)?
                    .iter()
                    .filter(|valid| **valid)
                    .count()
                    == 1
            }
            "not" => !model(argument, body)?,
            "title" | "description" => true,
            _ => return None,
        };
    }
    Some(valid)
}

fn is_a(body: &Value, name: &str) -> bool {
    match name {
        "null" => body.is_null(),
        "boolean" => body.is_boolean(),
        "number" | "integer" => body.is_number(),
        "string" => body.is_string(),
        "array" => body.is_array(),
        "object" => body.is_object(),
        _ => false,
    }
}

/// Whether all numbers are integers of at most 53 bits, so that comparisons do not depend on their form.
fn is_plain(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.as_i64().is_some_and(|number| number.abs() < 1 << 53),
        Value::Array(items) => items.iter().all(is_plain),
        Value::Object(members) => members.values().all(is_plain),
        _ => true,
    }
}
