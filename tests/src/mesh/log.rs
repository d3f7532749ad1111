//! Lines of access logs.

use std::fmt;

use serde_json::Value;

/// One line of an access log.
#[derive(Clone)]
pub struct LogLine(Value);

impl LogLine {
    /// All lines in what a proxy wrote.
    pub(crate) fn all(text: &str) -> Vec<Self> {
        let values = text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok());
        values.map(Self).collect()
    }

    /// A field as text; empty when it is not there.
    pub fn text(&self, field: &str) -> String {
        match &self.0[field] {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        }
    }

    /// Asserts that `field` is `value`.
    #[track_caller]
    pub fn has(&self, field: &str, value: &str) -> &Self {
        assert_eq!(self.text(field), value, "`{field}` in {self:?}");
        self
    }

    /// Asserts that `field` is there and not empty.
    #[track_caller]
    pub fn has_field(&self, field: &str) -> &Self {
        assert!(!self.text(field).is_empty(), "no `{field}` in {self:?}");
        self
    }

    /// Asserts that `text` stands nowhere in the line.
    #[track_caller]
    pub fn does_not_contain(&self, text: &str) -> &Self {
        assert!(!self.0.to_string().contains(text), "`{text}` in {self:?}");
        self
    }
}

impl fmt::Debug for LogLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}
