//! Reads a tree into a type and reports every problem, not only the first.
//!
//! Serde stops at the first problem, so a tree is read repeatedly, each time without the parts that were found invalid
//! before, until no more problems are found. A part that is missing only because it was skipped is not a problem.

mod error;

use std::{
    cell::{Cell, RefCell},
    collections::HashSet,
};

use serde::de::{
    self, DeserializeOwned, DeserializeSeed, EnumAccess, MapAccess, SeqAccess, VariantAccess,
    Visitor, value::StrDeserializer,
};

use self::error::{Place, ReadError};
use crate::{
    nearest,
    node::{Key, Mark, Node, Value, cut, join_key},
};

/// A part of a tree that does not fit its type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mismatch {
    pub(crate) at: Mark,
    pub(crate) path: String,
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
}

/// Reads `node`, which is at `path`. A problem with the whole node is underlined at `at`.
///
/// # Errors
/// All mismatches; never empty.
pub(crate) fn read<T: DeserializeOwned>(
    node: &Node,
    path: &str,
    at: Mark,
) -> Result<T, Vec<Mismatch>> {
    read_with(node, path, at, &State::default())
}

fn read_with<T: DeserializeOwned>(
    node: &Node,
    path: &str,
    at: Mark,
    state: &State,
) -> Result<T, Vec<Mismatch>> {
    loop {
        let reader = Reader {
            node,
            at,
            path: path.to_owned(),
            state,
        };
        let result = reader.seed(std::marker::PhantomData::<T>);
        let error = match result {
            Ok(value) if state.found.borrow().is_empty() => return Ok(value),
            Ok(_) => return Err(state.found.take()),
            Err(error) => error,
        };
        let id = error.place.as_ref().map_or(id(node), |place| place.id);
        if let (false, Some(Place { at, path, .. })) = (error.consequential, error.place) {
            state.found.borrow_mut().push(Mismatch {
                at,
                path,
                message: error.message,
                hint: error.hint,
            });
        }
        state.skipped.borrow_mut().insert(id);
        // The second condition never holds, because each round skips one more node; it keeps a mistake here from
        // becoming an endless loop.
        state.rounds.set(state.rounds.get() + 1);
        if id == self::id(node) || state.rounds.get() > MAX_PROBLEMS {
            let mut found = state.found.take();
            if found.is_empty() {
                found.push(Mismatch {
                    at,
                    path: path.to_owned(),
                    message: "this value cannot be read".to_owned(),
                    hint: None,
                });
            }
            return Err(found);
        }
    }
}

/// Maximum number of problems that are searched for in one document.
const MAX_PROBLEMS: usize = 100;

#[derive(Default)]
struct State {
    /// Nodes that were found invalid.
    skipped: RefCell<HashSet<usize>>,
    /// Fields of nodes that an unknown field was probably meant to be: they are not reported as missing.
    misspelled: RefCell<HashSet<(usize, &'static str)>>,
    found: RefCell<Vec<Mismatch>>,
    /// How many times the tree was read without success.
    rounds: Cell<usize>,
}

/// A node's address identifies it: the tree does not change while it is read.
fn id(node: &Node) -> usize {
    std::ptr::from_ref(node).addr()
}

/// A node as serde reads it.
struct Reader<'a> {
    node: &'a Node,
    at: Mark,
    path: String,
    state: &'a State,
}

impl Reader<'_> {
    /// Adds this node's place to an error, unless a deeper node has added its own.
    fn placed<T>(&self, result: Result<T, ReadError>) -> Result<T, ReadError> {
        result.map_err(|error| self.place(error))
    }

    fn place(&self, mut error: ReadError) -> ReadError {
        if error.place.is_some() {
            return error;
        }
        let mut path = self.path.clone();
        if let Some(field) = error.missing {
            error.consequential = self.is_reported(field);
            path = join_key(&path, field);
        }
        if let (Value::Text(text), "invalid socket address syntax") =
            (&self.node.value, error.message.as_str())
        {
            error.message = format!("`{}` is not an address and port", cut(text));
            let hint = "write an IP address and a port, such as `127.0.0.1:7561`; host names are not resolved";
            error.hint = Some(hint.to_owned());
        }
        error.place = Some(Place {
            id: id(self.node),
            at: self.at,
            path,
        });
        error
    }

    /// Reads with a seed. An error that the seed itself returns is about this node's value.
    fn seed<'de, T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, ReadError> {
        let again = Reader {
            path: self.path.clone(),
            ..self
        };
        seed.deserialize(self).map_err(|error| again.place(error))
    }

    /// Whether a missing field is there, but with a problem that is reported already.
    fn is_reported(&self, field: &'static str) -> bool {
        let here = self.node.get(field);
        here.is_some_and(|(_, node)| self.state.skipped.borrow().contains(&id(node)))
            || (self.state.misspelled.borrow()).contains(&(id(self.node), field))
    }

    fn mismatch<T>(&self, expected: &str) -> Result<T, ReadError> {
        let message = format!("expected {expected}, found {}", self.node.describe());
        self.placed(Err(ReadError::new(message, None)))
    }

    fn any<'de, V: Visitor<'de>>(&self, visitor: V) -> Result<V::Value, ReadError> {
        match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Unsigned(value) => visitor.visit_u64(*value),
            Value::Signed(value) => visitor.visit_i64(*value),
            Value::Float(value) => visitor.visit_f64(*value),
            Value::Text(text) => visitor.visit_str(text),
            Value::List(items) => visitor.visit_seq(Items {
                list: self,
                rest: items.iter().enumerate(),
            }),
            Value::Map(entries) => visitor.visit_map(Entries {
                map: self,
                rest: entries.iter(),
                value: None,
            }),
        }
    }
}

macro_rules! as_written {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
            self.placed(self.any(visitor))
        }
    )*};
}

impl<'de> de::Deserializer<'de> for Reader<'_> {
    type Error = ReadError;

    as_written! {
        deserialize_any deserialize_bool deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_f32 deserialize_f64
        deserialize_char deserialize_str deserialize_string deserialize_bytes deserialize_byte_buf
        deserialize_unit deserialize_seq deserialize_map deserialize_identifier
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        visitor.visit_unit()
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match self.node.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        let Value::Map(entries) = &self.node.value else {
            return self.mismatch("a map");
        };
        // Serde would stop at the first unknown field. All of them are reported at once, and skipped.
        for (key, node) in entries {
            if fields.contains(&key.text.as_str())
                || !self.state.skipped.borrow_mut().insert(id(node))
            {
                continue;
            }
            if self.state.found.borrow().len() >= MAX_PROBLEMS {
                continue;
            }
            // A known field that is already set is not what the unknown field was meant to be.
            let free = fields
                .iter()
                .copied()
                .filter(|field| self.node.get(field).is_none());
            let near = nearest::nearest(&key.text, free);
            if let Some(field) = near {
                let mut misspelled = self.state.misspelled.borrow_mut();
                misspelled.insert((id(self.node), field));
            }
            let hint = nearest::suggestion(near, fields.to_vec());
            self.state.found.borrow_mut().push(Mismatch {
                at: key.at,
                path: join_key(&self.path, &key.text),
                message: format!("unknown field `{}`", cut(&key.text)),
                hint,
            });
        }
        self.placed(self.any(visitor))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        let result = match &self.node.value {
            Value::Text(text) => visitor.visit_enum(Variant {
                name: text,
                content: None,
            }),
            Value::Map(entries) => match entries.as_slice() {
                [(key, node)] => {
                    if !variants.contains(&key.text.as_str()) {
                        let mut error: ReadError = de::Error::unknown_variant(&key.text, variants);
                        error.place = Some(Place {
                            id: id(self.node),
                            at: key.at,
                            path: join_key(&self.path, &key.text),
                        });
                        return Err(error);
                    }
                    visitor.visit_enum(Variant {
                        name: &key.text,
                        content: Some(self.child(key, node)),
                    })
                }
                several => {
                    let found: Vec<&str> =
                        several.iter().map(|(key, _)| key.text.as_str()).collect();
                    let found = if found.is_empty() {
                        "none".to_owned()
                    } else {
                        listed(&found)
                    };
                    let message = format!(
                        "expected exactly one of {}, found {found}",
                        listed(variants)
                    );
                    return self.placed(Err(ReadError::new(message, None)));
                }
            },
            _ => return self.mismatch(&format!("one of {}", listed(variants))),
        };
        self.placed(result)
    }
}

fn listed(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    quoted.join(", ")
}

impl<'a> Reader<'a> {
    fn child(&self, key: &Key, node: &'a Node) -> Self {
        Reader {
            node,
            at: node.mark_under(key),
            path: join_key(&self.path, &key.text),
            state: self.state,
        }
    }
}

struct Items<'r, 'a> {
    list: &'r Reader<'a>,
    rest: std::iter::Enumerate<std::slice::Iter<'a, Node>>,
}

impl<'de> SeqAccess<'de> for Items<'_, '_> {
    type Error = ReadError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, ReadError> {
        for (index, node) in self.rest.by_ref() {
            if self.list.state.skipped.borrow().contains(&id(node)) {
                continue;
            }
            let reader = Reader {
                node,
                at: node.at,
                path: format!("{}[{index}]", self.list.path),
                state: self.list.state,
            };
            return reader.seed(seed).map(Some);
        }
        Ok(None)
    }
}

struct Entries<'r, 'a> {
    map: &'r Reader<'a>,
    rest: std::slice::Iter<'a, (Key, Node)>,
    value: Option<(&'a Key, &'a Node)>,
}

impl<'de> MapAccess<'de> for Entries<'_, '_> {
    type Error = ReadError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, ReadError> {
        for (key, node) in self.rest.by_ref() {
            if self.map.state.skipped.borrow().contains(&id(node)) {
                continue;
            }
            self.value = Some((key, node));
            let name = StrDeserializer::<ReadError>::new(&key.text);
            return seed.deserialize(name).map(Some).map_err(|mut error| {
                if error.place.is_none() {
                    error.place = Some(Place {
                        id: id(node),
                        at: key.at,
                        path: join_key(&self.map.path, &key.text),
                    });
                }
                error
            });
        }
        Ok(None)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, ReadError> {
        let Some((key, node)) = self.value.take() else {
            return Err(de::Error::custom("a value without a key"));
        };
        self.map.child(key, node).seed(seed)
    }
}

/// An enum's variant: a bare name, or a map of one key.
struct Variant<'a> {
    name: &'a str,
    content: Option<Reader<'a>>,
}

impl<'de, 'a> EnumAccess<'de> for Variant<'a> {
    type Error = ReadError;
    type Variant = Content<'a>;

    fn variant_seed<T: DeserializeSeed<'de>>(
        self,
        seed: T,
    ) -> Result<(T::Value, Content<'a>), ReadError> {
        let name = seed.deserialize(StrDeserializer::<ReadError>::new(self.name))?;
        let content = Content {
            name: self.name,
            reader: self.content,
        };
        Ok((name, content))
    }
}

struct Content<'a> {
    name: &'a str,
    reader: Option<Reader<'a>>,
}

impl<'a> Content<'a> {
    fn reader(self) -> Result<Reader<'a>, ReadError> {
        let Self { name, reader } = self;
        reader.ok_or_else(|| {
            ReadError::new(
                format!("`{name}` must be a map with its settings"),
                Some(format!(
                    "write `{name}: {{ … }}`, or `{name}: {{}}` without settings"
                )),
            )
        })
    }
}

impl<'de> VariantAccess<'de> for Content<'_> {
    type Error = ReadError;

    fn unit_variant(self) -> Result<(), ReadError> {
        match self.reader {
            None => Ok(()),
            Some(reader) => reader.mismatch("no value"),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, ReadError> {
        self.reader()?.seed(seed)
    }

    fn tuple_variant<V: Visitor<'de>>(
        self,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        de::Deserializer::deserialize_tuple(self.reader()?, length, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        de::Deserializer::deserialize_struct(self.reader()?, "", fields, visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{document::documents, report::Report, resource::RateLimitSpec, resources::File};

    /// The number of problems of a spec, and how many times it was read.
    fn problems_and_rounds(spec: &str) -> (usize, usize) {
        let file = File::new("a.yaml", spec);
        let node = documents(&file, &mut Report::new()).remove(0);
        let state = State::default();
        let (at, _) = node.find("");
        let found = read_with::<RateLimitSpec>(&node, "spec", at, &state);
        (found.unwrap_err().len(), state.rounds.get() + 1)
    }

    #[test]
    fn unknown_fields_are_found_by_reading_once_and_other_problems_by_reading_once_each() {
        let unknown =
            |count: usize| -> String { (0..count).map(|n| format!("x{n}: 1\n")).collect() };
        let limits = "limits: [{ name: a, rate: { requests: 1, per: 1s } }]\n";
        assert_eq!(
            problems_and_rounds(&format!("{limits}{}", unknown(5))),
            (5, 1)
        );
        let wrong = |count: usize| format!("limits: [{}]", "1, ".repeat(count));
        assert_eq!(problems_and_rounds(&wrong(5)), (5, 6));
    }

    /// A document of 1 MiB must not cost more than this many readings.
    #[test]
    fn a_document_is_read_at_most_a_hundred_times_however_many_problems_it_has() {
        let unknown: String = (0..45_000).map(|n| format!("x{n}: 1\n")).collect();
        let (found, rounds) = problems_and_rounds(&unknown);
        assert!(found <= MAX_PROBLEMS + 1 && rounds <= 2, "{found} {rounds}");
        let wrong = format!("limits: [{}]", "1, ".repeat(45_000));
        let (found, rounds) = problems_and_rounds(&wrong);
        assert!(found <= MAX_PROBLEMS + 1, "{found}");
        assert!(rounds <= MAX_PROBLEMS + 2, "{rounds}");
    }
}
