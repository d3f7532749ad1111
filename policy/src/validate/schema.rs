//! Compiled JSON Schemas for bodies.

use jsonschema::{Validator, error::ValidationErrorKind};
use serde_json::Value;

use super::{
    in_place,
    node::{OnTape, TapeNode},
    tape::Tape,
    violation::Violation,
};

/// How often the values of a body may be visited to find the message of a violation, which keeps the problems of all
/// alternatives. Beyond it, the message names no value.
const EXPLANATION: u64 = 20_000;

/// Bytes of a schema, as JSON.
const MAX_SCHEMA: usize = 256 << 10;
/// Bytes of one pattern.
const MAX_PATTERN: usize = 4 << 10;
/// Patterns of a schema: of `pattern` and `patternProperties`.
const MAX_PATTERNS: usize = 128;
/// Bytes of one compiled pattern.
const MAX_COMPILED_PATTERN: usize = 1 << 20;

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
        check_bounds(schema)?;
        jsonschema::options_for::<OnTape>()
            .with_draft(jsonschema::Draft::Draft202012)
            .with_pattern_options(jsonschema::PatternOptions::regex().size_limit(MAX_COMPILED_PATTERN))
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

/// Checks what compilation takes time and memory for.
fn check_bounds(schema: &Value) -> Result<(), String> {
    let bytes = schema.to_string().len();
    if bytes > MAX_SCHEMA {
        return Err(format!(
            "the JSON Schema has {bytes} bytes; the maximum is {MAX_SCHEMA} (256KiB)"
        ));
    }
    let mut patterns = Vec::new();
    collect_patterns(schema, &mut patterns);
    if patterns.len() > MAX_PATTERNS {
        return Err(format!(
            "the JSON Schema has {} patterns; the maximum is {MAX_PATTERNS}",
            patterns.len()
        ));
    }
    in_place::check(schema).map_err(|why| format!("the JSON Schema is not supported: {why}"))?;
    let long = patterns.iter().find(|pattern| pattern.len() > MAX_PATTERN);
    long.map_or(Ok(()), |long| {
        Err(format!(
            "the pattern `{}…` of the JSON Schema has {} bytes; the maximum is {MAX_PATTERN} (4KiB)",
            long.chars().take(32).collect::<String>(),
            long.len()
        ))
    })
}

/// Collects every text that could be a pattern, also in a property that is named like the keyword.
fn collect_patterns<'a>(schema: &'a Value, patterns: &mut Vec<&'a str>) {
    match schema {
        Value::Object(members) => {
            for (name, value) in members {
                match (&**name, value) {
                    ("pattern", Value::String(pattern)) => patterns.push(pattern),
                    ("patternProperties", Value::Object(by_pattern)) => {
                        patterns.extend(by_pattern.keys().map(String::as_str));
                    }
                    _ => {}
                }
                collect_patterns(value, patterns);
            }
        }
        Value::Array(items) => items
            .iter()
            .for_each(|item| collect_patterns(item, patterns)),
        _ => {}
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
