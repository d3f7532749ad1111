//! Unambiguous JSON: unique names, nested at most 64 deep, no trailing data (RFC 8259 §4, §9).

use std::{cell::RefCell, fmt};

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Maximum depth of nested arrays and objects.
pub const MAX_DEPTH: usize = 64;

/// Why JSON is rejected, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct JsonProblem {
    message: String,
    pointer: String,
}

impl JsonProblem {
    /// The location: a JSON pointer (RFC 6901), as far as the text was read.
    pub fn pointer(&self) -> &str {
        &self.pointer
    }
}

/// Parses one JSON text.
///
/// # Errors
/// When it is not JSON, repeats a name, is nested too deep, or has trailing data.
pub fn parse(bytes: &[u8]) -> Result<Value, JsonProblem> {
    let place = RefCell::new(String::new());
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let read = Strict {
        place: &place,
        depth: 0,
    }
    .deserialize(&mut deserializer)
    .and_then(|value| deserializer.end().map(|()| value));
    read.map_err(|error| JsonProblem {
        message: sentence(&error),
        pointer: place.take(),
    })
}

/// The parser's message with line and column, which does not quote the input.
fn sentence(error: &serde_json::Error) -> String {
    error.to_string().chars().take(160).collect()
}

struct Strict<'a> {
    /// Extended when entering a value and truncated when leaving it, so that it points to the location of an error.
    place: &'a RefCell<String>,
    depth: usize,
}

impl Strict<'_> {
    fn enter<E: de::Error>(&self, step: &str) -> Result<(Strict<'_>, usize), E> {
        let mut place = self.place.borrow_mut();
        let length = place.len();
        place.push('/');
        // Truncated: a name can be as long as the body.
        place.extend(step.chars().take(64).flat_map(|character| match character {
            '~' => ['~', '0'].into_iter().take(2),
            '/' => ['~', '1'].into_iter().take(2),
            other => [other, ' '].into_iter().take(1),
        }));
        Ok((
            Strict {
                place: self.place,
                depth: self.depth.saturating_add(1),
            },
            length,
        ))
    }

    fn check_depth<E: de::Error>(&self) -> Result<(), E> {
        if self.depth >= MAX_DEPTH {
            return Err(E::custom(format_args!(
                "it is nested deeper than {MAX_DEPTH}"
            )));
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom("a number is out of range"))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E: de::Error>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        self.check_depth()?;
        let mut all = Vec::new();
        loop {
            let (inner, length) = self.enter(&all.len().to_string())?;
            let item = items.next_element_seed(inner)?;
            self.place.borrow_mut().truncate(length);
            match item {
                Some(item) => all.push(item),
                None => return Ok(Value::Array(all)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        self.check_depth()?;
        let mut all = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            let (inner, length) = self.enter(&name)?;
            if all.contains_key(&name) {
                return Err(de::Error::custom("an object has a duplicate name"));
            }
            let value = members.next_value_seed(inner)?;
            self.place.borrow_mut().truncate(length);
            all.insert(name, value);
        }
        Ok(Value::Object(all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(text: &str) -> (String, String) {
        let problem = parse(text.as_bytes()).unwrap_err();
        (problem.to_string(), problem.pointer().to_owned())
    }

    #[test]
    fn a_duplicate_name_is_rejected_with_its_location() {
        let (message, place) = problem(r#"{"a": [1, {"b": 1, "b": 2}]}"#);
        assert!(
            message.starts_with("an object has a duplicate name"),
            "{message}"
        );
        assert_eq!(place, "/a/1/b");
        // An escaped name is the same name.
        assert!(parse(br#"{"a": 1, "\u0061": 2}"#).is_err());
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse(nested(MAX_DEPTH).as_bytes()).is_ok());
        assert!(
            problem(&nested(MAX_DEPTH + 1))
                .0
                .contains("nested deeper than 64")
        );
    }

    #[test]
    fn trailing_data_is_rejected() {
        for text in [
            "{} {}",
            "1 2",
            "{}x",
            "",
            "{\"a\":1,}",
            "NaN",
            "'a'",
            "\u{feff}{}",
        ] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
        assert!(parse(b" {\"a\": [1, 2.5, -3, null, true, \"x\"]} \n").is_ok());
        assert!(parse(b"{\"a\": \"\xff\"}").is_err());
    }

    #[test]
    fn pointers_are_escaped_per_rfc_6901() {
        assert_eq!(problem(r#"{"a/b~c": {"x": 1, "x": 1}}"#).1, "/a~1b~0c/x");
    }
}
