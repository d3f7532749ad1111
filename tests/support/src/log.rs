//! Access-log lines.

use std::fmt;

use serde_json::Value;

/// One line of an access log.
#[derive(Clone)]
pub struct LogLine(Value);

impl LogLine {
    /// All access-log lines in the output of a proxy.
    pub fn all(text: &str) -> Vec<Self> {
        let values = text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok());
        values.map(Self).collect()
    }

    /// A field as text; empty if it is missing.
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

    /// Asserts that `field` is present and not empty.
    #[track_caller]
    pub fn has_field(&self, field: &str) -> &Self {
        assert!(!self.text(field).is_empty(), "no `{field}` in {self:?}");
        self
    }

    /// Asserts that `field` is missing or empty.
    #[track_caller]
    pub fn lacks(&self, field: &str) -> &Self {
        assert_eq!(self.text(field), "", "`{field}` in {self:?}");
        self
    }

    /// Asserts that the line does not contain `text`.
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
