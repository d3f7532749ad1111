//! Unambiguous JSON: unique names, nested at most 64 deep, no trailing data (RFC 8259 §4, §9).

use std::{cell::RefCell, fmt, marker::PhantomData};

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
    pub(super) fn new(message: &str) -> Self {
        Self {
            message: message.to_owned(),
            pointer: String::new(),
        }
    }

    pub(super) fn at(mut self, pointer: String) -> Self {
        self.pointer = pointer;
        self
    }

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
    read::<Tree>(bytes)
}

/// Checks one JSON text without keeping it. Repeated names are not found.
///
/// # Errors
/// When it is not JSON, is nested too deep, or has trailing data.
pub(super) fn check(bytes: &[u8]) -> Result<(), JsonProblem> {
    read::<Nothing>(bytes)
}

fn read<K: Keep>(bytes: &[u8]) -> Result<K::Value, JsonProblem> {
    let place = RefCell::new(String::new());
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let read = Strict::<K> {
        place: &place,
        depth: 0,
        keep: PhantomData,
    }
    .deserialize(&mut deserializer)
    .and_then(|value| deserializer.end().map(|()| value));
    read.map_err(|error| JsonProblem {
        message: sentence(&error),
        pointer: place.take(),
    })
}

/// Appends a step to a JSON pointer. A name can be as long as the body, so it is truncated.
pub(super) fn push_step(pointer: &mut String, step: &str) {
    pointer.push('/');
    for character in step.chars().take(64) {
        match character {
            '~' => pointer.push_str("~0"),
            '/' => pointer.push_str("~1"),
            other => pointer.push(other),
        }
    }
}

/// The parser's message with line and column, which does not quote the input.
fn sentence(error: &serde_json::Error) -> String {
    error.to_string().chars().take(160).collect()
}

/// What is kept of a text.
trait Keep {
    type Value;
    type Items: Default;
    type Members: Default;

    fn scalar(scalar: impl Into<Value>) -> Self::Value;
    fn string(text: &str) -> Self::Value;
    fn push(items: &mut Self::Items, item: Self::Value);
    fn array(items: Self::Items) -> Self::Value;
    /// Whether the name is new, as far as that is known.
    fn is_new(members: &Self::Members, name: &str) -> bool;
    fn insert(members: &mut Self::Members, name: String, value: Self::Value);
    fn object(members: Self::Members) -> Self::Value;
}

/// All values.
enum Tree {}

impl Keep for Tree {
    type Value = Value;
    type Items = Vec<Value>;
    type Members = Map<String, Value>;

    fn scalar(scalar: impl Into<Value>) -> Value {
        scalar.into()
    }

    fn string(text: &str) -> Value {
        Value::String(text.to_owned())
    }

    fn push(items: &mut Vec<Value>, item: Value) {
        items.push(item);
    }

    fn array(items: Vec<Value>) -> Value {
        Value::Array(items)
    }

    fn is_new(members: &Map<String, Value>, name: &str) -> bool {
        !members.contains_key(name)
    }

    fn insert(members: &mut Map<String, Value>, name: String, value: Value) {
        members.insert(name, value);
    }

    fn object(members: Map<String, Value>) -> Value {
        Value::Object(members)
    }
}

enum Nothing {}

impl Keep for Nothing {
    type Value = ();
    type Items = ();
    type Members = ();

    fn scalar(_: impl Into<Value>) {}
    fn string(_: &str) {}
    fn push((): &mut (), (): ()) {}
    fn array((): ()) {}
    fn is_new((): &(), _: &str) -> bool {
        true
    }
    fn insert((): &mut (), _: String, (): ()) {}
    fn object((): ()) {}
}

struct Strict<'a, K> {
    /// Extended when entering a value and truncated when leaving it, so that it points to the location of an error.
    place: &'a RefCell<String>,
    depth: usize,
    keep: PhantomData<K>,
}

impl<K> Strict<'_, K> {
    fn enter(&self, step: &str) -> (Strict<'_, K>, usize) {
        let mut place = self.place.borrow_mut();
        let length = place.len();
        push_step(&mut place, step);
        let inner = Strict {
            place: self.place,
            depth: self.depth.saturating_add(1),
            keep: PhantomData,
        };
        (inner, length)
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

impl<'de, K: Keep> DeserializeSeed<'de> for Strict<'_, K> {
    type Value = K::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<K::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, K: Keep> Visitor<'de> for Strict<'_, K> {
    type Value = K::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: de::Error>(self) -> Result<K::Value, E> {
        Ok(K::scalar(()))
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<K::Value, E> {
        Ok(K::scalar(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<K::Value, E> {
        Ok(K::scalar(value))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<K::Value, E> {
        Ok(K::scalar(value))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<K::Value, E> {
        Number::from_f64(value)
            .map(K::scalar)
            .ok_or_else(|| E::custom("a number is out of range"))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<K::Value, E> {
        Ok(K::string(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<K::Value, A::Error> {
        self.check_depth()?;
        let mut all = K::Items::default();
        let mut number = 0_usize;
        loop {
            let (inner, length) = self.enter(&number.to_string());
            let item = items.next_element_seed(inner)?;
            self.place.borrow_mut().truncate(length);
            number += 1;
            match item {
                Some(item) => K::push(&mut all, item),
                None => return Ok(K::array(all)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<K::Value, A::Error> {
        self.check_depth()?;
        let mut all = K::Members::default();
        while let Some(name) = members.next_key::<String>()? {
            let (inner, length) = self.enter(&name);
            if !K::is_new(&all, &name) {
                return Err(de::Error::custom("an object has a duplicate name"));
            }
            let value = members.next_value_seed(inner)?;
            self.place.borrow_mut().truncate(length);
            K::insert(&mut all, name, value);
        }
        Ok(K::object(all))
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
