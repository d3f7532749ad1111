use jsonschema::Validator;
use serde_json::Value;

use super::{
    Violation,
    head::{essence, too_large},
    json,
    route::{RouteMatch, Router},
};

/// A JSON Schema (2020-12), compiled.
#[derive(Debug)]
pub(crate) struct BodySchema(Validator);

impl BodySchema {
    /// `$ref` reaches only within the schema itself: nothing is fetched, ever.
    pub(crate) fn new(schema: &Value) -> Result<Self, String> {
        jsonschema::options()
            .with_draft(jsonschema::Draft::Draft202012)
            .with_pattern_options(jsonschema::PatternOptions::regex().size_limit(1 << 20))
            .should_validate_formats(true)
            .offline()
            .build(schema)
            .map(Self)
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

    fn check(&self, body: &Value) -> Result<(), Violation> {
        self.0.validate(body).map_err(|error| {
            let place = error.instance_path().to_string();
            // Masked: a refused body may hold a secret, and this sentence goes to logs.
            let sentence = cut(&error.masked_with("the value").to_string());
            Violation::new(
                400,
                "validate.body",
                format!("the body breaks its schema: {sentence}"),
            )
            .at(place)
        })
    }
}

/// What a body must be, when it is looked at before it is sent on.
#[derive(Debug, Clone)]
pub struct BodyRule<'a> {
    max_bytes: u64,
    schemas: Vec<&'a BodySchema>,
}

impl<'a> BodyRule<'a> {
    pub(crate) fn new(router: &'a Router, route: &'a RouteMatch) -> Option<Self> {
        let schemas: Vec<&BodySchema> = router
            .documents(route)
            .filter_map(|(_, chosen)| chosen?.1?.body.as_ref())
            .collect();
        (!schemas.is_empty()).then(|| Self {
            max_bytes: super::max_body(router, route).unwrap_or(1 << 20),
            schemas,
        })
    }

    /// The most that may be buffered, in bytes. Over it: 413.
    pub fn max_bytes(&self) -> u64 {
        self.max_bytes
    }

    /// Checks the whole body: JSON that every reader reads alike (RFC 8259 §4), and right by every schema.
    ///
    /// # Errors
    /// The first violation, with the JSON pointer of its place.
    pub fn check(&self, body: &[u8], content_type: Option<&str>) -> Result<(), Violation> {
        if u64::try_from(body.len()).unwrap_or(u64::MAX) > self.max_bytes {
            return Err(too_large(self.max_bytes));
        }
        if !content_type.is_some_and(is_json) {
            return Err(Violation::new(
                415,
                "http.media_type",
                "the body must be application/json",
            )
            .at("content-type"));
        }
        let body = json::parse(body).map_err(|problem| {
            Violation::new(
                400,
                "validate.body",
                format!("the body is not acceptable JSON: {problem}"),
            )
            .at(problem.pointer())
        })?;
        self.schemas
            .iter()
            .try_for_each(|schema| schema.check(&body))
    }
}

/// `application/json` and `application/*+json` (RFC 6839 §3.1), in UTF-8 if it says so.
pub(crate) fn is_json(content_type: &str) -> bool {
    let essence = essence(content_type);
    let json = essence == "application/json"
        || (essence.starts_with("application/") && essence.ends_with("+json"));
    let utf8 = content_type.split(';').skip(1).all(|parameter| {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        !name.trim().eq_ignore_ascii_case("charset")
            || value.trim().trim_matches('"').eq_ignore_ascii_case("utf-8")
    });
    json && utf8
}

fn cut(text: &str) -> String {
    text.chars().take(300).collect()
}
