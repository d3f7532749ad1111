//! JSON Schemas of bodies, compiled.

use jsonschema::{Validator, error::ValidationErrorKind};
use serde_json::Value;

use super::Violation;

/// A JSON Schema (2020-12), compiled.
#[derive(Debug)]
pub(crate) struct BodySchema {
    validator: Validator,
    /// Whether it says anything about how large or which a number is.
    pub(super) bounds_numbers: bool,
}

impl BodySchema {
    /// `$ref` reaches only within the schema itself: nothing is fetched, ever.
    pub(crate) fn new(schema: &Value) -> Result<Self, String> {
        jsonschema::options()
            .with_draft(jsonschema::Draft::Draft202012)
            .with_pattern_options(jsonschema::PatternOptions::regex().size_limit(1 << 20))
            .should_validate_formats(true)
            .offline()
            .build(schema)
            .map(|validator| Self {
                validator,
                bounds_numbers: bounds_numbers(schema),
            })
            .map_err(|error| {
                let place = error.instance_path().to_string();
                let place = if place.is_empty() {
                    String::new()
                } else {
                    format!(" at `{place}`")
                };
                let mut sentence = cut(&error.to_string());
                if place.ends_with("/type`") {
                    // What the meta-schema says of it is about itself.
                    sentence = format!(
                        "{} is none of the types `array`, `boolean`, `integer`, `null`, `number`, `object`, `string`",
                        cut(&error.instance().to_string())
                    );
                }
                format!("the JSON Schema is not valid{place}: {sentence}")
            })
    }

    pub(super) fn check(&self, body: &Value) -> Result<(), Violation> {
        self.validator.validate(body).map_err(|error| {
            let place = error.instance_path().to_string();
            // Masked: a refused body may hold a secret, and this sentence goes to logs.
            let sentence = match error.kind() {
                ValidationErrorKind::AdditionalProperties { unexpected }
                | ValidationErrorKind::UnevaluatedProperties { unexpected } => {
                    unexpected_names(unexpected)
                }
                _ => cut(&error.masked_with("the value").to_string()),
            };
            Violation::new(
                400,
                "validate.body",
                format!("the body does not match its schema: {sentence}"),
            )
            .at(place)
        })
    }
}

/// Names are a stranger's bytes: the first of them, short and without what a terminal or a page would obey.
fn unexpected_names(names: &[String]) -> String {
    let first = names.first().map(String::as_str).unwrap_or_default();
    let mut name: String = first
        .chars()
        .take(32)
        .flat_map(char::escape_default)
        .collect();
    if first.chars().nth(32).is_some() {
        name.push('…');
    }
    match names.len() {
        0 | 1 => format!("the property `{name}` is not allowed"),
        all => format!("{all} properties are not allowed, the first is `{name}`"),
    }
}

/// Whether numbers are compared somewhere in a schema.
fn bounds_numbers(schema: &Value) -> bool {
    const WORDS: [&str; 5] = [
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "multipleOf",
    ];
    match schema {
        Value::Object(members) => members.iter().any(|(name, value)| {
            WORDS.contains(&name.as_str())
                || (name == "type" && holds(value, |one| one == "integer"))
                || (matches!(name.as_str(), "const" | "enum") && holds(value, Value::is_number))
                || bounds_numbers(value)
        }),
        Value::Array(items) => items.iter().any(bounds_numbers),
        _ => false,
    }
}

/// Whether a value, or one of its items, fits.
fn holds(value: &Value, fits: impl Fn(&Value) -> bool) -> bool {
    fits(value) || value.as_array().is_some_and(|items| items.iter().any(fits))
}

fn cut(text: &str) -> String {
    text.chars().take(300).collect()
}
