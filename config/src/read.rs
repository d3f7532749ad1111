//! From the tree to the types, with every problem and not only the first.
//!
//! Serde gives up at the first problem, so a tree is read again and again, each time without the parts that were found
//! wrong before, until nothing more is found. What then is missing only because it was taken out is not a problem.

use std::{
    cell::{Cell, RefCell},
    collections::HashSet,
    fmt,
};

use serde::de::{
    self, DeserializeOwned, DeserializeSeed, EnumAccess, Expected, MapAccess, SeqAccess,
    Unexpected, VariantAccess, Visitor, value::StrDeserializer,
};

use crate::{
    nearest,
    node::{Key, Mark, Node, Value, cut, join_key},
};

/// Something in a tree that does not fit its type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Misfit {
    pub(crate) at: Mark,
    pub(crate) path: String,
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
}

/// Reads `node`, which stands at `path` and whose problems are underlined at `at` when they concern all of it.
///
/// # Errors
/// Everything that does not fit; never empty.
pub(crate) fn read<T: DeserializeOwned>(
    node: &Node,
    path: &str,
    at: Mark,
) -> Result<T, Vec<Misfit>> {
    let state = State::default();
    loop {
        let reader = Reader {
            node,
            at,
            path: path.to_owned(),
            state: &state,
        };
        let result = reader.seed(std::marker::PhantomData::<T>);
        let wrong = match result {
            Ok(value) if state.found.borrow().is_empty() => return Ok(value),
            Ok(_) => return Err(state.found.into_inner()),
            Err(wrong) => wrong,
        };
        let id = wrong.place.as_ref().map_or(id(node), |place| place.id);
        if let (false, Some(Place { at, path, .. })) = (wrong.follows, wrong.place) {
            state.found.borrow_mut().push(Misfit {
                at,
                path,
                message: wrong.message,
                hint: wrong.hint,
            });
        }
        state.without.borrow_mut().insert(id);
        // The second condition cannot be while each round takes something out that was still in; it keeps a mistake
        // here from becoming an endless loop.
        state.rounds.set(state.rounds.get() + 1);
        if id == self::id(node) || state.rounds.get() > MOST {
            let mut found = state.found.into_inner();
            if found.is_empty() {
                found.push(Misfit {
                    at,
                    path: path.to_owned(),
                    message: "this cannot be read".to_owned(),
                    hint: None,
                });
            }
            return Err(found);
        }
    }
}

/// How many problems of one document are looked for.
const MOST: usize = 100;

#[derive(Default)]
struct State {
    /// Nodes that were found wrong: they are passed over.
    without: RefCell<HashSet<usize>>,
    /// Fields of nodes that a wrong name was probably meant for: they are not missing as well.
    meant: RefCell<HashSet<(usize, &'static str)>>,
    found: RefCell<Vec<Misfit>>,
    rounds: Cell<usize>,
}

/// A node's address names it: the tree does not change while it is read.
fn id(node: &Node) -> usize {
    std::ptr::from_ref(node).addr()
}

#[derive(Debug)]
struct Place {
    id: usize,
    at: Mark,
    path: String,
}

/// Why reading stopped.
#[derive(Debug)]
struct Stop {
    message: String,
    hint: Option<String>,
    place: Option<Place>,
    missing: Option<&'static str>,
    /// It is the consequence of a problem that is known.
    follows: bool,
}

impl Stop {
    fn new(message: String, hint: Option<String>) -> Self {
        Self {
            message,
            hint,
            place: None,
            missing: None,
            follows: false,
        }
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Stop {}

impl de::Error for Stop {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(message.to_string(), None)
    }

    fn invalid_type(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_value(unexpected, expected)
    }

    fn invalid_value(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let found = match unexpected {
            Unexpected::Str(text) => format!("the text `{}`", cut(text)),
            Unexpected::Unsigned(number) => format!("the number `{number}`"),
            Unexpected::Signed(number) => format!("the number `{number}`"),
            Unexpected::Float(number) => format!("the number `{number}`"),
            Unexpected::Bool(value) => format!("`{value}`"),
            Unexpected::Unit | Unexpected::Option => "nothing".to_owned(),
            Unexpected::Seq => "a list".to_owned(),
            Unexpected::Map => "a map".to_owned(),
            other => other.to_string(),
        };
        let expected = expected.to_string();
        let words = words(&expected);
        let hint = match unexpected {
            Unexpected::Unsigned(_)
            | Unexpected::Signed(_)
            | Unexpected::Float(_)
            | Unexpected::Bool(_)
                if words == "a text" =>
            {
                Some(format!("put it in quotes: `{}`", Quoted(&unexpected)))
            }
            Unexpected::Str(text)
                if words.starts_with("a whole number") && text.parse::<u64>().is_ok() =>
            {
                Some(format!("leave the quotes out: `{text}`"))
            }
            Unexpected::Str("yes" | "on" | "Yes" | "On" | "True" | "TRUE")
                if words == "`true` or `false`" =>
            {
                Some("write `true`".to_owned())
            }
            Unexpected::Str("no" | "off" | "No" | "Off" | "False" | "FALSE")
                if words == "`true` or `false`" =>
            {
                Some("write `false`".to_owned())
            }
            _ => None,
        };
        Self::new(format!("expected {words}, found {found}"), hint)
    }

    fn invalid_length(length: usize, expected: &dyn Expected) -> Self {
        Self::new(format!("expected {expected}, found {length}"), None)
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::new(
            format!("`{}` is not known here", cut(variant)),
            nearest::hint(variant, expected.iter().copied()),
        )
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self::new(
            format!("unknown field `{}`", cut(field)),
            nearest::hint(field, expected.iter().copied()),
        )
    }

    fn missing_field(field: &'static str) -> Self {
        Self {
            missing: Some(field),
            ..Self::new(format!("`{field}` is missing"), None)
        }
    }

    fn duplicate_field(field: &'static str) -> Self {
        Self::new(format!("`{field}` stands here twice"), None)
    }
}

struct Quoted<'a>(&'a Unexpected<'a>);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Unexpected::Unsigned(number) => write!(f, "\"{number}\""),
            Unexpected::Signed(number) => write!(f, "\"{number}\""),
            Unexpected::Float(number) => write!(f, "\"{number}\""),
            other => write!(
                f,
                "\"{}\"",
                other.to_string().rsplit('`').nth(1).unwrap_or_default()
            ),
        }
    }
}

/// Serde's names of what it wants, in the words of people who write YAML.
fn words(expected: &str) -> String {
    match expected {
        "u16" => "a whole number from 0 to 65535".to_owned(),
        "u32" => "a whole number from 0 to 4294967295".to_owned(),
        "u8" | "u64" | "usize" => "a whole number that is not negative".to_owned(),
        "i32" | "i64" => "a whole number".to_owned(),
        "a string" | "a borrowed string" | "path string" | "a string representing an URL" => {
            "a text".to_owned()
        }
        "a boolean" => "`true` or `false`".to_owned(),
        "a sequence" => "a list".to_owned(),
        "a map" => "a map".to_owned(),
        "socket address" => "an address and port, as `127.0.0.1:7561`".to_owned(),
        other if other.starts_with("struct ") => "a map".to_owned(),
        // The `url` crate gives the reason in the place of the expectation.
        other if is_url_reason(other) => "a URL, as `https://login.example.org`".to_owned(),
        other => other.to_owned(),
    }
}

fn is_url_reason(text: &str) -> bool {
    use url::ParseError::{
        EmptyHost, IdnaError, InvalidDomainCharacter, InvalidIpv4Address, InvalidIpv6Address,
        InvalidPort, Overflow, RelativeUrlWithCannotBeABaseBase, RelativeUrlWithoutBase,
        SetHostOnCannotBeABaseUrl,
    };
    [
        EmptyHost,
        IdnaError,
        InvalidDomainCharacter,
        InvalidIpv4Address,
        InvalidIpv6Address,
        InvalidPort,
        Overflow,
        RelativeUrlWithoutBase,
        RelativeUrlWithCannotBeABaseBase,
        SetHostOnCannotBeABaseUrl,
    ]
    .iter()
    .any(|reason| reason.to_string() == text)
}

/// A node as serde reads it.
struct Reader<'a> {
    node: &'a Node,
    at: Mark,
    path: String,
    state: &'a State,
}

impl Reader<'_> {
    /// Says where it was, unless something deeper has said so.
    fn placed<T>(&self, result: Result<T, Stop>) -> Result<T, Stop> {
        result.map_err(|stop| self.place(stop))
    }

    fn place(&self, mut stop: Stop) -> Stop {
        if stop.place.is_some() {
            return stop;
        }
        let mut path = self.path.clone();
        if let Some(field) = stop.missing {
            stop.follows = self.was_wrong(field);
            path = join_key(&path, field);
        }
        if let (Value::Text(text), "invalid socket address syntax") =
            (&self.node.value, stop.message.as_str())
        {
            stop.message = format!("`{}` is not an address and port", cut(text));
            stop.hint = Some("write it as `127.0.0.1:7561`; names are not looked up".to_owned());
        }
        stop.place = Some(Place {
            id: id(self.node),
            at: self.at,
            path,
        });
        stop
    }

    /// Reads with a seed. What the seed finds wrong with a value that serde could read is about that value.
    fn seed<'de, T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Stop> {
        let again = Reader {
            path: self.path.clone(),
            ..self
        };
        seed.deserialize(self).map_err(|stop| again.place(stop))
    }

    /// Whether what is missing was there, and is told of already.
    fn was_wrong(&self, field: &'static str) -> bool {
        let here = self.node.get(field);
        here.is_some_and(|(_, node)| self.state.without.borrow().contains(&id(node)))
            || self.state.meant.borrow().contains(&(id(self.node), field))
    }

    fn stop<T>(&self, expected: &str) -> Result<T, Stop> {
        let message = format!("expected {expected}, found {}", self.node.describe());
        self.placed(Err(Stop::new(message, None)))
    }

    fn any<'de, V: Visitor<'de>>(&self, visitor: V) -> Result<V::Value, Stop> {
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
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
            self.placed(self.any(visitor))
        }
    )*};
}

impl<'de> de::Deserializer<'de> for Reader<'_> {
    type Error = Stop;

    as_written! {
        deserialize_any deserialize_bool deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_f32 deserialize_f64
        deserialize_char deserialize_str deserialize_string deserialize_bytes deserialize_byte_buf
        deserialize_unit deserialize_seq deserialize_map deserialize_identifier
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        visitor.visit_unit()
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        match self.node.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Stop> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Stop> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Stop> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Stop> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Stop> {
        let Value::Map(entries) = &self.node.value else {
            return self.stop("a map");
        };
        // Serde would stop at the first unknown field: all of them are told at once, and passed over.
        for (key, node) in entries {
            if fields.contains(&key.text.as_str())
                || !self.state.without.borrow_mut().insert(id(node))
            {
                continue;
            }
            if self.state.found.borrow().len() >= MOST {
                continue;
            }
            // A field that stands here correctly already is not what was meant by the wrong one.
            let free = fields
                .iter()
                .copied()
                .filter(|field| self.node.get(field).is_none());
            let near = nearest::nearest(&key.text, free);
            if let Some(field) = near {
                self.state.meant.borrow_mut().insert((id(self.node), field));
            }
            let hint = nearest::advice(near, fields.to_vec());
            self.state.found.borrow_mut().push(Misfit {
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
    ) -> Result<V::Value, Stop> {
        let result = match &self.node.value {
            Value::Text(text) => visitor.visit_enum(Variant {
                name: text,
                content: None,
            }),
            Value::Map(entries) => match entries.as_slice() {
                [(key, node)] => {
                    if !variants.contains(&key.text.as_str()) {
                        let mut stop: Stop = de::Error::unknown_variant(&key.text, variants);
                        stop.place = Some(Place {
                            id: id(self.node),
                            at: key.at,
                            path: join_key(&self.path, &key.text),
                        });
                        return Err(stop);
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
                    return self.placed(Err(Stop::new(message, None)));
                }
            },
            _ => return self.stop(&format!("one of {}", listed(variants))),
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
    type Error = Stop;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Stop> {
        for (index, node) in self.rest.by_ref() {
            if self.list.state.without.borrow().contains(&id(node)) {
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
    type Error = Stop;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Stop> {
        for (key, node) in self.rest.by_ref() {
            if self.map.state.without.borrow().contains(&id(node)) {
                continue;
            }
            self.value = Some((key, node));
            let name = StrDeserializer::<Stop>::new(&key.text);
            return seed.deserialize(name).map(Some).map_err(|mut stop| {
                if stop.place.is_none() {
                    stop.place = Some(Place {
                        id: id(node),
                        at: key.at,
                        path: join_key(&self.map.path, &key.text),
                    });
                }
                stop
            });
        }
        Ok(None)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Stop> {
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
    type Error = Stop;
    type Variant = Content<'a>;

    fn variant_seed<T: DeserializeSeed<'de>>(
        self,
        seed: T,
    ) -> Result<(T::Value, Content<'a>), Stop> {
        let name = seed.deserialize(StrDeserializer::<Stop>::new(self.name))?;
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
    fn reader(self) -> Result<Reader<'a>, Stop> {
        let Self { name, reader } = self;
        reader.ok_or_else(|| {
            Stop::new(
                format!("`{name}` must be written as a map, with what it needs below it"),
                Some(format!(
                    "write `{name}: {{ … }}`; where nothing is needed, `{name}: {{}}`"
                )),
            )
        })
    }
}

impl<'de> VariantAccess<'de> for Content<'_> {
    type Error = Stop;

    fn unit_variant(self) -> Result<(), Stop> {
        match self.reader {
            None => Ok(()),
            Some(reader) => reader.stop("nothing below this"),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Stop> {
        self.reader()?.seed(seed)
    }

    fn tuple_variant<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value, Stop> {
        de::Deserializer::deserialize_tuple(self.reader()?, length, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Stop> {
        de::Deserializer::deserialize_struct(self.reader()?, "", fields, visitor)
    }
}
