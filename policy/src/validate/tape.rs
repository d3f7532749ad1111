//! A JSON body in a compact form: the positions of its values in its text.
//!
//! A tree of values takes many times the memory of its text. The tape has one number for each name and scalar, and two or
//! three for each array and object, so it takes at most three and a half times the memory of the
//! text, and usually about as much as the text.

use std::{cell::Cell, cmp::Ordering, iter};

use super::json::{self, JsonProblem};

/// A body, and how often its values may still be visited.
#[derive(Debug)]
pub(crate) struct Tape<'a> {
    text: &'a str,
    /// A scalar or a name is its position in the text. An array is its position, the index after its last item, and its
    /// items. An object is its position, the index after its last part, and, unless it is empty, the number of its members,
    /// each as its name and its value, and the indices of the members in the order of their names.
    words: Vec<u32>,
    visits: Cell<u64>,
}

/// Bytes of stack that the validator may need after it has learnt that its visits are spent: for at most
/// [`super::in_place::MAX_IN_PLACE`] schemas of one value, in debug builds, too.
const STACK_RESERVE: usize = 4 << 20;

/// Bytes of a text whose reading counts as one visit more.
const BYTES_PER_VISIT: usize = 64;

impl<'a> Tape<'a> {
    /// Reads one JSON text: unique names, at most [`json::MAX_DEPTH`] levels, nothing behind it (RFC 8259 §4, §9).
    ///
    /// # Errors
    /// When it is anything else.
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Self, JsonProblem> {
        json::check(bytes)?;
        let text = std::str::from_utf8(bytes).map_err(|_| JsonProblem::new("it is not UTF-8"))?;
        if u32::try_from(text.len()).is_err() {
            return Err(JsonProblem::new("it has 4 GiB or more"));
        }
        let mut tape = Self {
            text,
            words: Vec::with_capacity(words(text)),
            visits: Cell::new(0),
        };
        tape.fill()?;
        Ok(tape)
    }

    /// Bytes that the tape takes beside the text.
    #[cfg(test)]
    pub(super) fn memory(&self) -> usize {
        self.words.capacity() * size_of::<u32>()
    }

    /// Sets how often values may be visited from now on.
    pub(crate) fn allow(&self, visits: u64) {
        self.visits.set(visits);
    }

    /// Whether more visits were tried than allowed.
    pub(crate) fn is_spent(&self) -> bool {
        self.visits.get() == 0
    }

    /// Counts a visit that reads this many bytes. `false`: it is one too many, or the stack is nearly full.
    pub(super) fn visit(&self, bytes: usize) -> bool {
        if stacker::remaining_stack().is_some_and(|left| left < STACK_RESERVE) {
            self.visits.set(0);
        }
        let cost = 1 + bytes / BYTES_PER_VISIT;
        let left = self.visits.get().saturating_sub(cost as u64);
        self.visits.set(left);
        left > 0
    }

    fn fill(&mut self) -> Result<(), JsonProblem> {
        let text = self.text;
        // The indices of the open arrays and objects.
        let mut open: Vec<usize> = Vec::new();
        for (at, token) in tokens(text) {
            match token {
                Token::Scalar | Token::Name => self.words.push(word(at)),
                Token::Open => {
                    open.push(self.words.len());
                    self.words.extend([word(at), 0]);
                }
                Token::Close => {
                    let Some(start) = open.pop() else { continue };
                    if self.is_object(start) {
                        self.close_object(start, &open)?;
                    } else {
                        self.set(start + 1, self.words.len());
                    }
                }
                // An object with members has their number after its end.
                Token::FirstName => self.words.extend([0, word(at)]),
            }
        }
        Ok(())
    }

    fn close_object(&mut self, start: usize, parents: &[usize]) -> Result<(), JsonProblem> {
        let end = self.words.len();
        if end > start + 2 {
            let mut at = start + 3;
            let mut members = 0;
            while at < end {
                self.words.push(word(at));
                members += 1;
                at = self.after(at + 1);
            }
            self.set(start + 2, members);
            let mut order = self.words.split_off(end);
            order.sort_unstable_by(|one, other| self.name_at(*one).cmp(&self.name_at(*other)));
            let twice = order.iter().zip(order.iter().skip(1));
            let mut twice = twice
                .filter(|(one, other)| self.name_at(**one).cmp(&self.name_at(**other)).is_eq());
            if let Some((one, other)) = twice.next() {
                let pointer = self.pointer(parents, start, *one.max(other));
                let message = "an object has a duplicate name";
                return Err(JsonProblem::new(message).at(pointer));
            }
            self.words.append(&mut order);
        }
        self.set(start + 1, self.words.len());
        Ok(())
    }

    /// The JSON pointer of a member of the object at `start`, which is the last part of its parents so far.
    fn pointer(&self, parents: &[usize], start: usize, member: u32) -> String {
        let mut pointer = String::new();
        let path = parents.iter().copied().chain([start]);
        for (container, child) in path.clone().zip(path.skip(1)) {
            if self.is_object(container) {
                // The name is the word before the value.
                json::push_step(&mut pointer, &self.name_at(word(child - 1)).decoded());
            } else {
                let before = self.children(container + 2, child).count();
                json::push_step(&mut pointer, &before.to_string());
            }
        }
        json::push_step(&mut pointer, &self.name_at(member).decoded());
        pointer
    }

    fn set(&mut self, at: usize, value: usize) {
        if let Some(place) = self.words.get_mut(at) {
            *place = word(value);
        }
    }

    fn get(&self, at: usize) -> usize {
        self.words.get(at).map_or(0, |word| *word as usize)
    }

    /// The text from the value at this index on.
    pub(super) fn rest(&self, at: usize) -> &'a str {
        self.text.get(self.get(at)..).unwrap_or_default()
    }

    pub(super) fn first(&self, at: usize) -> u8 {
        self.rest(at).bytes().next().unwrap_or(b'n')
    }

    fn is_object(&self, at: usize) -> bool {
        self.first(at) == b'{'
    }

    /// The index after a value.
    fn after(&self, at: usize) -> usize {
        match self.first(at) {
            b'{' | b'[' => self.get(at + 1).max(at + 1),
            _ => at + 1,
        }
    }

    fn children(&self, from: usize, end: usize) -> impl Iterator<Item = usize> {
        let mut at = from;
        iter::from_fn(move || {
            let child = at;
            (child < end).then(|| {
                at = self.after(child);
                child
            })
        })
    }

    /// The indices of an array's items.
    pub(super) fn items(&self, at: usize) -> impl Iterator<Item = usize> {
        self.children(at + 2, self.get(at + 1))
    }

    /// The number of members of an object.
    pub(super) fn members(&self, at: usize) -> usize {
        let empty = self.get(at + 1) <= at + 2;
        if empty { 0 } else { self.get(at + 2) }
    }

    /// The indices of an object's names, in the order of the text. The value is at the next index.
    pub(super) fn names(&self, at: usize) -> impl Iterator<Item = usize> {
        let order = self.get(at + 1).saturating_sub(self.members(at));
        let mut name = at + 3;
        iter::from_fn(move || {
            let this = name;
            (this < order).then(|| {
                name = self.after(this + 1);
                this
            })
        })
    }

    /// The indices of an object's names, in their order.
    pub(super) fn sorted_names(&self, at: usize) -> &[u32] {
        let end = self.get(at + 1);
        let start = end.saturating_sub(self.members(at));
        self.words.get(start..end).unwrap_or_default()
    }

    fn name_at(&self, at: u32) -> Text<'a> {
        self.text_at(at as usize)
    }

    /// The string at this index.
    pub(super) fn text_at(&self, at: usize) -> Text<'a> {
        let inside = self.rest(at).get(1..).unwrap_or_default();
        Text(inside.get(..string_length(inside)).unwrap_or_default())
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "`read` bounds the text, and a tape is shorter than 2^32 words"
)]
fn word(at: usize) -> u32 {
    at as u32
}

/// The characters of a JSON string, between its quotes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Text<'a>(&'a str);

impl<'a> Text<'a> {
    /// Bytes in the body.
    pub(super) fn len(self) -> usize {
        self.0.len()
    }

    /// The text, if nothing in it is escaped.
    pub(super) fn plain(self) -> Option<&'a str> {
        (!self.0.as_bytes().contains(&b'\\')).then_some(self.0)
    }

    pub(super) fn decoded(self) -> std::borrow::Cow<'a, str> {
        self.plain()
            .map_or_else(|| self.characters().collect::<String>().into(), Into::into)
    }

    pub(super) fn cmp(self, other: &Self) -> Ordering {
        match (self.plain(), other.plain()) {
            (Some(one), Some(other)) => one.cmp(other),
            // The order of characters is that of their UTF-8.
            _ => self.characters().cmp(other.characters()),
        }
    }

    pub(super) fn cmp_str(self, other: &str) -> Ordering {
        match self.plain() {
            Some(one) => one.cmp(other),
            None => self.characters().cmp(other.chars()),
        }
    }

    fn characters(self) -> impl Iterator<Item = char> + use<'a> {
        let mut rest = self.0.chars();
        iter::from_fn(move || {
            let first = rest.next()?;
            if first != '\\' {
                return Some(first);
            }
            Some(match rest.next()? {
                'b' => '\u{8}',
                'f' => '\u{c}',
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                'u' => {
                    let high = hex(&mut rest);
                    if !(0xd800..0xdc00).contains(&high) {
                        return Some(char::from_u32(high).unwrap_or(char::REPLACEMENT_CHARACTER));
                    }
                    // The second half of a pair: `\uXXXX`.
                    let _ = (rest.next(), rest.next());
                    let low = hex(&mut rest);
                    let pair = 0x1_0000 + ((high - 0xd800) << 10) + low.wrapping_sub(0xdc00);
                    char::from_u32(pair).unwrap_or(char::REPLACEMENT_CHARACTER)
                }
                itself => itself,
            })
        })
    }
}

fn hex(rest: &mut std::str::Chars<'_>) -> u32 {
    let digits = rest.take(4).filter_map(|digit| digit.to_digit(16));
    digits.fold(0, |number, digit| (number << 4) | digit)
}

/// The length of a string up to its closing quote.
fn string_length(inside: &str) -> usize {
    let bytes = inside.as_bytes();
    let mut at = 0;
    while let Some(found) = bytes
        .get(at..)
        .and_then(|rest| rest.iter().position(|byte| matches!(byte, b'"' | b'\\')))
    {
        if bytes.get(at + found) == Some(&b'"') {
            return at + found;
        }
        at += found + 2;
    }
    inside.len()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Open,
    Close,
    Scalar,
    Name,
    /// The first name of an object.
    FirstName,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Item,
    FirstName,
    Name,
    Value,
}

/// The positions of the values and names of a text that is JSON.
fn tokens(text: &str) -> impl Iterator<Item = (usize, Token)> {
    let bytes = text.as_bytes();
    let mut at = 0;
    // What comes next in each open array or object.
    let mut next: Vec<Next> = Vec::new();
    iter::from_fn(move || {
        loop {
            let start = at;
            let token = match bytes.get(at)? {
                b'{' => {
                    next.push(Next::FirstName);
                    Token::Open
                }
                b'[' => {
                    next.push(Next::Item);
                    Token::Open
                }
                b'}' | b']' => {
                    next.pop();
                    Token::Close
                }
                separator @ (b',' | b':') => {
                    if let Some(next) = next.last_mut().filter(|next| **next != Next::Item) {
                        *next = if *separator == b',' {
                            Next::Name
                        } else {
                            Next::Value
                        };
                    }
                    at += 1;
                    continue;
                }
                b' ' | b'\t' | b'\r' | b'\n' => {
                    at += 1;
                    continue;
                }
                b'"' => {
                    at += 1 + string_length(text.get(at + 1..)?);
                    match next.last() {
                        Some(Next::FirstName) => Token::FirstName,
                        Some(Next::Name) => Token::Name,
                        _ => Token::Scalar,
                    }
                }
                _ => {
                    let ends = |byte: &u8| {
                        matches!(byte, b',' | b']' | b'}' | b' ' | b'\t' | b'\r' | b'\n')
                    };
                    let length = bytes.get(at..)?.iter().position(ends);
                    at = length.map_or(bytes.len(), |length| at + length) - 1;
                    Token::Scalar
                }
            };
            at += 1;
            return Some((start, token));
        }
    })
}

/// The length of the tape of a text.
fn words(text: &str) -> usize {
    let words = tokens(text).map(|(_, token)| match token {
        Token::Close => 0,
        Token::Scalar => 1,
        // A name, and its index in the order of names.
        Token::Open | Token::Name => 2,
        Token::FirstName => 3,
    });
    words.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pointer_of_duplicate(text: &str) -> String {
        let problem = Tape::read(text.as_bytes()).unwrap_err();
        assert!(
            problem
                .to_string()
                .starts_with("an object has a duplicate name"),
            "{problem}"
        );
        problem.pointer().to_owned()
    }

    #[test]
    fn a_duplicate_name_is_rejected_with_its_location() {
        assert_eq!(
            pointer_of_duplicate(r#"{"a": [1, {"b": 1, "b": 2}]}"#),
            "/a/1/b"
        );
        assert_eq!(
            pointer_of_duplicate(r#"{"a/b~c": {"x": 1, "c": {}, "x": 1}}"#),
            "/a~1b~0c/x"
        );
        // An escaped name is the same name.
        assert_eq!(
            pointer_of_duplicate(r#"[[], {"a": 1, "\u0061": 2}]"#),
            "/1/a"
        );
        assert_eq!(
            pointer_of_duplicate("{\"\u{1f600}\": 1, \"\\ud83d\\ude00\": 2}"),
            "/\u{1f600}"
        );
        assert!(Tape::read(br#"{"a": {"a": 1}, "b": [{"a": 1}, {"a": 1}]}"#).is_ok());
    }

    #[test]
    fn what_is_not_json_is_rejected() {
        for text in [
            "",
            "{} {}",
            "{\"a\":1,}",
            "NaN",
            "[1e999]",
            "\"\\ud800\"",
            "\"\\ud800\\u0041\"",
        ] {
            assert!(Tape::read(text.as_bytes()).is_err(), "{text}");
        }
        assert!(Tape::read(b"\"\xff\"").is_err());
    }

    #[test]
    fn a_tape_takes_at_most_three_and_a_half_times_the_memory_of_its_text() {
        let object =
            r#"{"id":"9f0c","lines":[{"sku":"a-1","quantity":3,"price":1.25}],"paid":true}"#;
        for (item, most) in [
            (object, 1.4),
            ("1", 2.1),
            ("[1]", 3.1),
            ("[]", 2.7),
            ("{}", 2.7),
            (r#"{"":1}"#, 3.5),
            ("\"\\u0000\\u0000\"", 0.3),
        ] {
            let text = format!("[{}]", vec![item; 10_000].join(","));
            let tape = Tape::read(text.as_bytes()).unwrap();
            assert_eq!(tape.words.len(), tape.words.capacity(), "{item}");
            #[expect(clippy::cast_precision_loss, reason = "small numbers")]
            let share = tape.memory() as f64 / text.len() as f64;
            assert!(share <= most, "{item}: {share}");
        }
    }
}
