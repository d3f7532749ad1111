//! Problems of documents, with their locations.

use std::fmt;

use merlon_config::name::ServiceName;

/// A problem of a document that policies are compiled from.
///
/// `line` and `column` count from 1 within the document's own text; the loader of files knows the file and line at
/// which that text starts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub struct PolicyProblem {
    /// The resource, as `namespace/name`.
    pub document: ServiceName,
    /// The source of the document, such as `policies/orders.yaml:12:1`; empty when unknown.
    pub origin: String,
    /// Line within the document's text, from 1; 0 when the problem has no location in the text.
    pub line: u32,
    /// Column in characters, from 1; 0 when the problem has no location in the text.
    pub column: u32,
    /// The field, such as `spec.routes[2].body`, for problems outside policy text.
    pub field: Option<String>,
    /// The problem: lower case, no full stop, user input in backticks.
    pub message: String,
    /// How to fix it.
    pub hint: Option<String>,
}

impl PolicyProblem {
    pub(crate) fn new(document: &ServiceName, message: impl Into<String>) -> Self {
        Self {
            document: document.clone(),
            origin: String::new(),
            line: 0,
            column: 0,
            field: None,
            message: message.into(),
            hint: None,
        }
    }

    /// Sets the location to a byte offset of `text`.
    pub(crate) fn at(mut self, text: &str, offset: usize) -> Self {
        (self.line, self.column) = place(text, offset);
        self
    }

    pub(crate) fn field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(crate) fn origin(mut self, origin: &str) -> Self {
        origin.clone_into(&mut self.origin);
        self
    }
}

/// Line and column of a byte offset, both from 1, columns in characters.
pub(crate) fn place(text: &str, offset: usize) -> (u32, u32) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let line = before.matches('\n').count() + 1;
    let column = before.get(line_start..).unwrap_or("").chars().count() + 1;
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    (number(line), number(column))
}

impl fmt::Display for PolicyProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.document)?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        if let Some(field) = &self.field {
            write!(f, " `{field}`")?;
        }
        write!(f, ": {}", self.message)?;
        if let Some(hint) = &self.hint {
            write!(f, " (hint: {hint})")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_names_document_line_and_column_in_characters() {
        let text = "permit\n  ä wrong";
        let document = "shop/orders".parse().unwrap();
        let offset = text.find("wrong").unwrap();
        let problem = PolicyProblem::new(&document, "`wrong` is wrong")
            .at(text, offset)
            .hint("write `right`");
        assert_eq!((problem.line, problem.column), (2, 5));
        assert_eq!(
            problem.to_string(),
            "shop/orders:2:5: `wrong` is wrong (hint: write `right`)"
        );
    }
}
