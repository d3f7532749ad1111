//! The values of a [`Tape`], as the schema validator reads them.
//!
//! Every reading is counted. When the visits that are allowed are spent, each value answers as `null`, so that the validation
//! ends soon; its result then means nothing.

use std::{
    borrow::Cow,
    cmp::Ordering,
    hash::{Hash as _, Hasher as _},
    ops::ControlFlow,
};

use jsonschema::{
    JsonType,
    json::{Array, Json, Node, NodeIdentity, Object},
};
use serde_json::{Number, Value};

use super::{numbers, tape::Tape};

/// A body on a tape.
pub(crate) struct OnTape;

impl Json for OnTape {
    type Node<'a> = TapeNode<'a>;
    type PreparedKey = String;
    type StringBuffer = ();

    // A lookup compares the names of a binary search.
    const KEYS_PER_LOOKUP: usize = 2;
    const ACYCLIC: bool = true;

    fn prepare_key(key: &str) -> String {
        key.to_owned()
    }

    fn with_string_node<T>((): &mut (), string: &str, f: impl FnOnce(TapeNode<'_>) -> T) -> T {
        f(TapeNode::Name(string))
    }
}

/// A value.
#[derive(Clone, Copy)]
pub(crate) enum TapeNode<'a> {
    /// The value at an index.
    At(&'a Tape<'a>, usize),
    /// A name of an object, as a value. Its object counts the visit.
    Name(&'a str),
}

impl<'a> TapeNode<'a> {
    /// The whole body.
    pub(crate) fn root(tape: &'a Tape<'a>) -> Self {
        Self::At(tape, 0)
    }

    /// Tape and index of a value of this type, if it may still be visited.
    fn of_type(self, json_type: JsonType) -> Option<(&'a Tape<'a>, usize)> {
        match self {
            Self::At(tape, at) if self.json_type() == json_type => Some((tape, at)),
            _ => None,
        }
    }

    /// Whether two values are equal: numbers by their value, objects in any order.
    fn equals(self, other: Self) -> bool {
        let (kind, (Self::At(tape, at), Self::At(_, there))) = (self.json_type(), (self, other))
        else {
            return self.as_string() == other.as_string();
        };
        if kind != other.json_type() {
            return false;
        }
        match kind {
            JsonType::Null => true,
            JsonType::Boolean => tape.first(at) == tape.first(there),
            JsonType::String => self.as_string() == other.as_string(),
            JsonType::Number | JsonType::Integer => match (self.as_number(), other.as_number()) {
                (Some(one), Some(other)) => equal_numbers(&one, &other),
                _ => false,
            },
            JsonType::Array => {
                let (mut items, mut others) = (tape.items(at), tape.items(there));
                loop {
                    match (items.next(), others.next()) {
                        (None, None) => return true,
                        (Some(one), Some(other))
                            if Self::At(tape, one).equals(Self::At(tape, other)) => {}
                        _ => return false,
                    }
                }
            }
            JsonType::Object => {
                let (names, others) = (tape.sorted_names(at), tape.sorted_names(there));
                names.len() == others.len()
                    && names.iter().zip(others).all(|(name, other)| {
                        let (name, other) = (*name as usize, *other as usize);
                        let texts = (tape.text_at(name), tape.text_at(other));
                        tape.visit(texts.0.len().min(texts.1.len()))
                            && texts.0.cmp(&texts.1) == Ordering::Equal
                            && Self::At(tape, name + 1).equals(Self::At(tape, other + 1))
                    })
            }
        }
    }

    /// Equal values have the same hash.
    fn hash(self, state: &mut impl std::hash::Hasher) {
        let Self::At(tape, at) = self else { return };
        let kind = self.json_type();
        std::mem::discriminant(&kind).hash(state);
        match kind {
            JsonType::String => self.as_string().hash(state),
            // Integers beyond 2^53 that differ may have the same one.
            JsonType::Number | JsonType::Integer => {
                let number = self.as_number().and_then(|number| number.as_f64());
                // Both zeros are equal.
                state.write_u64((number.unwrap_or_default() + 0.0).to_bits());
            }
            JsonType::Array => tape
                .items(at)
                .for_each(|item| Self::At(tape, item).hash(state)),
            JsonType::Object => {
                for name in tape.sorted_names(at) {
                    let name = *name as usize;
                    if !tape.visit(tape.text_at(name).len()) {
                        return;
                    }
                    tape.text_at(name).decoded().hash(state);
                    Self::At(tape, name + 1).hash(state);
                }
            }
            JsonType::Null | JsonType::Boolean => {}
        }
    }
}

fn equal_numbers(one: &Number, other: &Number) -> bool {
    match (one.as_i128(), other.as_i128()) {
        (Some(one), Some(other)) => one == other,
        _ => one.as_f64() == other.as_f64(),
    }
}

impl<'a> Node<'a, OnTape> for TapeNode<'a> {
    type Object = Self;
    type Array = Self;
    type Number = Number;

    fn as_object(&self) -> Option<Self> {
        self.of_type(JsonType::Object).map(|_| *self)
    }

    fn as_array(&self) -> Option<Self> {
        self.of_type(JsonType::Array).map(|_| *self)
    }

    fn as_string(&self) -> Option<Cow<'a, str>> {
        if let Self::Name(text) = self {
            return Some(Cow::Borrowed(text));
        }
        let (tape, at) = self.of_type(JsonType::String)?;
        let text = tape.text_at(at);
        tape.visit(text.len()).then(|| text.decoded())
    }

    fn as_number(&self) -> Option<Number> {
        let (tape, at) = self.of_type(JsonType::Number)?;
        let rest = tape.rest(at);
        let text = rest.get(..numbers::length(rest.as_bytes()))?;
        if !tape.visit(text.len()) {
            return None;
        }
        serde_json::from_str(text).ok()
    }

    fn as_boolean(&self) -> Option<bool> {
        let (tape, at) = self.of_type(JsonType::Boolean)?;
        Some(tape.first(at) == b't')
    }

    fn is_null(&self) -> bool {
        self.json_type() == JsonType::Null
    }

    fn is_number(&self) -> bool {
        self.json_type() == JsonType::Number
    }

    fn json_type(&self) -> JsonType {
        let (tape, at) = match self {
            Self::Name(_) => return JsonType::String,
            Self::At(tape, at) => (tape, *at),
        };
        if !tape.visit(0) {
            return JsonType::Null;
        }
        match tape.first(at) {
            b'{' => JsonType::Object,
            b'[' => JsonType::Array,
            b'"' => JsonType::String,
            b't' | b'f' => JsonType::Boolean,
            b'n' => JsonType::Null,
            _ => JsonType::Number,
        }
    }

    fn equals_value(&self, expected: &Value) -> bool {
        match expected {
            Value::Null => self.is_null(),
            Value::Bool(expected) => self.as_boolean() == Some(*expected),
            Value::String(expected) => self.as_string().is_some_and(|text| text == *expected),
            Value::Number(expected) => {
                let number = self.as_number();
                number.is_some_and(|number| equal_numbers(&number, expected))
            }
            Value::Array(expected) => self.as_array().is_some_and(|array| {
                let mut items = array.elements();
                let all = expected.iter().all(|expected| {
                    let item = items.next();
                    item.is_some_and(|item| item.equals_value(expected))
                });
                all && items.next().is_none()
            }),
            Value::Object(expected) => self.as_object().is_some_and(|object| {
                Object::len(&object) == expected.len()
                    && expected.iter().all(|(name, expected)| {
                        let value = object.get(name);
                        value.is_some_and(|value| value.equals_value(expected))
                    })
            }),
        }
    }

    /// Only messages contain a value, and they mask it: a tree of the body would take many times its memory.
    fn to_value(&self) -> Cow<'a, Value> {
        Cow::Owned(Value::Null)
    }

    fn identity(&self) -> Option<NodeIdentity> {
        Some(match self {
            Self::Name(text) => NodeIdentity::new(text.as_ptr().addr()),
            Self::At(tape, at) => NodeIdentity::tagged(
                std::ptr::from_ref::<Tape<'_>>(tape).addr(),
                u32::try_from(*at).ok()?,
            ),
        })
    }
}

impl<'a> Object<'a, OnTape> for TapeNode<'a> {
    type Node = Self;
    type MemberName = Cow<'a, str>;
    type MembersIter = Box<dyn Iterator<Item = (Cow<'a, str>, Self)> + 'a>;

    fn len(&self) -> usize {
        match self {
            Self::At(tape, at) => tape.members(*at),
            Self::Name(_) => 0,
        }
    }

    fn get(&self, key: &String) -> Option<Self> {
        let Self::At(tape, at) = *self else {
            return None;
        };
        let names = tape.sorted_names(at);
        let mut spent = false;
        let found = names.binary_search_by(|name| {
            let text = tape.text_at(*name as usize);
            spent |= !tape.visit(text.len().min(key.len()));
            if spent {
                Ordering::Equal
            } else {
                text.cmp_str(key)
            }
        });
        let name = names.get(found.ok()?)?;
        (!spent).then_some(Self::At(tape, *name as usize + 1))
    }

    fn members(&self) -> Self::MembersIter {
        let Self::At(tape, at) = *self else {
            return Box::new(std::iter::empty());
        };
        Box::new(tape.names(at).map_while(move |name| {
            let text = tape.text_at(name);
            tape.visit(text.len())
                .then(|| (text.decoded(), Self::At(tape, name + 1)))
        }))
    }

    fn try_for_each_name_node<B>(
        &self,
        (): &mut (),
        mut f: impl FnMut(TapeNode<'_>) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        self.members()
            .try_for_each(|(name, _)| f(TapeNode::Name(&name)))
    }
}

impl<'a> Array<'a, OnTape> for TapeNode<'a> {
    type Node = Self;
    type ElementsIter = Box<dyn Iterator<Item = Self> + 'a>;

    fn len(&self) -> usize {
        self.elements().count()
    }

    fn elements(&self) -> Self::ElementsIter {
        let Self::At(tape, at) = *self else {
            return Box::new(std::iter::empty());
        };
        let items = tape.items(at);
        Box::new(items.map_while(move |item| tape.visit(0).then_some(Self::At(tape, item))))
    }

    fn is_unique(&self) -> bool {
        // The keys of the hasher are random, so that no client can choose items with equal hashes.
        let keys = std::hash::RandomState::new();
        let hashes = self.elements().map(|item| {
            let mut state = std::hash::BuildHasher::build_hasher(&keys);
            item.hash(&mut state);
            (state.finish(), item)
        });
        let mut hashes: Vec<(u64, Self)> = hashes.collect();
        hashes.sort_unstable_by_key(|(hash, _)| *hash);
        let groups = hashes.chunk_by(|(one, _), (other, _)| one == other);
        let mut pairs = groups.flat_map(|group| {
            let later = |number| group.iter().skip(number + 1);
            let numbered = group.iter().enumerate();
            numbered.flat_map(move |(number, (_, one))| {
                later(number).map(move |(_, other)| (*one, *other))
            })
        });
        !pairs.any(|(one, other)| one.equals(other))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use jsonschema::Validator;
    use proptest::{collection::vec, prelude::*};
    use serde_json::json;

    use super::*;

    /// Bodies of few values and names, so that schemas match some of them.
    fn body() -> impl Strategy<Value = Value> {
        let scalar = prop_oneof![
            Just(json!(null)),
            any::<bool>().prop_map(Value::from),
            prop_oneof![
                Just(json!(1)),
                Just(json!(1.0)),
                Just(json!(10)),
                Just(json!(-0.0)),
                Just(json!(0)),
                Just(json!(2.5))
            ],
            prop_oneof![
                Just(json!(u64::MAX)),
                Just(json!(u64::MAX - 1)),
                Just(json!(1e300)),
                any::<f64>().prop_map(Value::from)
            ],
            prop_oneof![Just("a"), Just("b\n\"\\/"), Just("\u{1f600}é"), Just("")]
                .prop_map(Value::from),
            ".{0,6}".prop_map(Value::from),
        ];
        scalar.prop_recursive(4, 32, 4, |inner| {
            let name = prop_oneof![
                Just("a".to_owned()),
                Just("b".to_owned()),
                Just("\u{1f600}\n".to_owned()),
                ".{0,3}"
            ];
            prop_oneof![
                vec(inner.clone(), 0..4).prop_map(Value::from),
                vec((name, inner), 0..4)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    fn schemas() -> [Value; 19] {
        let constant = json!({ "a": [1, { "b": null }], "\u{1f600}\n": "b\n\"\\/" });
        [
            json!({ "uniqueItems": true }),
            json!({ "items": { "uniqueItems": true }, "minItems": 2, "maxItems": 3 }),
            json!({ "enum": [1, 0, "a", null, [], {}, [1, 0], 1e300, u64::MAX, constant] }),
            json!({ "items": { "const": { "a": 1 } } }),
            json!({ "const": 1 }),
            json!({ "properties": { "a": { "type": "string" } }, "required": ["b"] }),
            json!({ "properties": { "a": {}, "\u{1f600}\n": false }, "additionalProperties": { "type": "number" } }),
            json!({ "patternProperties": { "^a": { "type": "integer" } }, "additionalProperties": false }),
            json!({ "propertyNames": { "pattern": "^[ab]$" }, "minProperties": 1, "maxProperties": 2 }),
            json!({ "minLength": 1, "maxLength": 2, "type": ["string", "array"] }),
            json!({ "pattern": "\n" }),
            json!({ "minimum": 1, "maximum": 10, "multipleOf": 2.5 }),
            json!({ "contains": { "type": "integer" }, "minContains": 1, "maxContains": 1 }),
            json!({ "prefixItems": [{ "type": "null" }], "items": { "type": "boolean" } }),
            json!({ "dependentRequired": { "a": ["b"] }, "dependentSchemas": { "b": { "maxProperties": 1 } } }),
            json!({ "anyOf": [{ "properties": { "a": {} }, "required": ["a"] }, true], "unevaluatedProperties": false }),
            json!({ "oneOf": [{ "prefixItems": [{ "type": "number" }] }, { "minItems": 2 }], "unevaluatedItems": false }),
            json!({ "if": { "type": "object" }, "then": { "not": { "required": ["a"] } }, "else": { "type": "array" } }),
            json!({
                "$defs": { "tree": { "anyOf": [{ "type": "number" }, { "items": { "$ref": "#/$defs/tree" }, "type": "array" }] } },
                "$ref": "#/$defs/tree",
            }),
        ]
    }

    /// The body with all characters of strings escaped.
    fn escaped(body: &Value) -> String {
        let mut text = String::new();
        let mut in_string = false;
        let mut characters = body.to_string().chars().collect::<Vec<_>>().into_iter();
        while let Some(character) = characters.next() {
            match character {
                '"' => {
                    in_string = !in_string;
                    text.push('"');
                }
                '\\' => {
                    let kind = characters.next();
                    text.push('\\');
                    text.extend(kind);
                    let digits = if kind == Some('u') { 4 } else { 0 };
                    text.extend(characters.by_ref().take(digits));
                }
                other if in_string => {
                    let mut units = [0; 2];
                    for unit in other.encode_utf16(&mut units) {
                        text.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                other => text.push(other),
            }
        }
        text
    }

    type Both = (Value, Validator, Validator<OnTape>);

    fn both(schema: Value) -> Both {
        let draft = jsonschema::Draft::Draft202012;
        let of_trees = jsonschema::options().with_draft(draft).build(&schema);
        let of_tapes = jsonschema::options_for::<OnTape>()
            .with_draft(draft)
            .build(&schema);
        (schema, of_trees.unwrap(), of_tapes.unwrap())
    }

    proptest! {
        #[test]
        fn a_body_on_tape_is_valid_exactly_if_its_tree_is(body in body()) {
            static BOTH: LazyLock<Vec<Both>> = LazyLock::new(|| schemas().map(both).into());
            for text in [body.to_string(), serde_json::to_string_pretty(&body).unwrap(), escaped(&body)] {
                let tree: Value = serde_json::from_str(&text).unwrap();
                let tape = Tape::read(text.as_bytes()).unwrap();
                for (schema, of_trees, of_tapes) in &*BOTH {
                    let valid = merlon_config::stack::with(crate::stack::EVALUATION, || {
                        tape.allow(1_000_000);
                        let root = TapeNode::root(&tape);
                        (of_tapes.is_valid(root), of_tapes.validate(root).is_ok())
                    });
                    let of_tree = of_trees.is_valid(&tree);
                    prop_assert_eq!(valid, (of_tree, of_tree), "{} {}", schema, text);
                    prop_assert!(!tape.is_spent());
                }
            }
        }
    }
}
