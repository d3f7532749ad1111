//! Compiled JSON Schemas for bodies.

use jsonschema::{Validator, error::ValidationErrorKind};
use serde_json::Value;

use super::{
    node::{OnTape, TapeNode},
    tape::Tape,
    violation::Violation,
};

/// How often the values of a body may be visited to find the message of a violation, which keeps the problems of all
/// alternatives. Beyond it, the message names no value.
const EXPLANATION: u64 = 20_000;

/// A JSON Schema (2020-12), compiled.
#[derive(Debug)]
pub(crate) struct BodySchema {
    validator: Validator<OnTape>,
    /// Whether it constrains the value of a number.
    pub(super) bounds_numbers: bool,
}

impl BodySchema {
    /// Compiles a schema. `$ref` is resolved only within the schema itself: nothing is fetched.
    pub(crate) fn new(schema: &Value) -> Result<Self, String> {
        jsonschema::options_for::<OnTape>()
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
                let mut sentence = truncate(&error.to_string());
                if place.ends_with("/type`") {
                    // The meta-schema's own message describes the meta-schema.
                    sentence = format!(
                        "{} is none of the types `array`, `boolean`, `integer`, `null`, `number`, `object`, `string`",
                        truncate(&error.instance().to_string())
                    );
                }
                format!("the JSON Schema is not valid{place}: {sentence}")
            })
    }

    /// Whether a body matches, unless its visits are spent.
    pub(super) fn matches(&self, body: &Tape<'_>) -> bool {
        self.validator.is_valid(TapeNode::root(body))
    }

    /// Why a body does not match.
    pub(super) fn violation(&self, body: &Tape<'_>) -> Violation {
        body.allow(EXPLANATION);
        let wrong = self.validator.validate(TapeNode::root(body));
        let violation = |sentence: &str| {
            let message = format!("the body does not match its schema{sentence}");
            Violation::new(400, "validate.body", message)
        };
        let Some(error) = wrong.err().filter(|_| !body.is_spent()) else {
            return violation("").at("");
        };
        let place = error.instance_path().to_string();
        // Masked: a rejected body may contain a secret, and this message is logged.
        let sentence = match error.kind() {
            ValidationErrorKind::AdditionalProperties { unexpected }
            | ValidationErrorKind::UnevaluatedProperties { unexpected } => {
                unexpected_names(unexpected)
            }
            _ => truncate(&error.masked_with("the value").to_string()),
        };
        violation(&format!(": {sentence}")).at(place)
    }
}

/// Names the first unexpected property. Names are untrusted, so the first one is truncated and escaped for terminals
/// and web pages.
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

/// Whether any keyword of a schema compares numbers.
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

/// Whether a value, or one of its items, satisfies `fits`.
fn holds(value: &Value, fits: impl Fn(&Value) -> bool) -> bool {
    fits(value) || value.as_array().is_some_and(|items| items.iter().any(fits))
}

fn truncate(text: &str) -> String {
    text.chars().take(300).collect()
}
