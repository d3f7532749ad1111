//! Problems in configuration files: where they are, how to fix them, and how they are printed.

use std::fmt;

use serde::{Serialize, Serializer};

/// A place in a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Position {
    /// The file's name, relative to the directory.
    pub file: String,
    /// From 1.
    pub line: u32,
    /// From 1, in characters.
    pub column: u32,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// Whether a problem prevents the use of the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Severity {
    /// The files are rejected.
    Error,
    /// The files are used, but they probably contain a mistake.
    Warning,
}

/// One problem in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// Error or warning.
    pub severity: Severity,
    /// The file, or the directory.
    pub file: String,
    /// From 1; 0 if the problem concerns the whole file.
    pub line: u32,
    /// From 1, in characters; 0 if the problem concerns the whole file.
    pub column: u32,
    /// Number of characters to underline; at least 1.
    pub width: u32,
    /// The field, for example `spec.limits[0].rate.requests`; may be empty.
    pub field: String,
    /// The message, in lower case and without a full stop.
    pub message: String,
    /// How to fix the problem.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The line of the file, without its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

impl Problem {
    /// An error with a whole file or directory.
    pub fn error(file: impl Into<String>, message: impl AsRef<str>) -> Self {
        Self {
            severity: Severity::Error,
            file: file.into(),
            line: 0,
            column: 0,
            width: 1,
            field: String::new(),
            message: printable(message.as_ref()),
            hint: None,
            source: None,
        }
    }

    /// Sets the place.
    #[must_use]
    pub fn at(mut self, line: u32, column: u32, width: u32) -> Self {
        self.line = line;
        self.column = column;
        self.width = width.max(1);
        self
    }

    /// Sets the field.
    #[must_use]
    pub fn field(mut self, field: impl Into<String>) -> Self {
        self.field = field.into();
        self
    }

    /// Sets the hint.
    #[must_use]
    pub fn hint(mut self, hint: impl AsRef<str>) -> Self {
        self.hint = Some(printable(hint.as_ref()));
        self
    }

    /// Sets the hint, if there is one.
    #[must_use]
    pub fn maybe_hint(self, hint: Option<impl AsRef<str>>) -> Self {
        match hint {
            Some(hint) => self.hint(hint),
            None => self,
        }
    }

    /// Makes the problem a warning.
    #[must_use]
    pub fn warning(mut self) -> Self {
        self.severity = Severity::Warning;
        self
    }

    /// Quotes the line of the problem from the text of its file.
    #[must_use]
    pub fn quote(mut self, text: &str) -> Self {
        if let Some(before) = self.line.checked_sub(1) {
            self.source = text
                .lines()
                .nth(usize::try_from(before).unwrap_or(usize::MAX))
                .map(str::to_owned);
        }
        self
    }

    fn place(&self) -> (&str, u32, u32) {
        (&self.file, self.line, self.column)
    }

    /// The place, unless the problem concerns the whole file.
    pub fn position(&self) -> Option<Position> {
        (self.line > 0).then(|| Position {
            file: self.file.clone(),
            line: self.line,
            column: self.column,
        })
    }
}

/// Text from a file may contain anything: removes control characters, which terminals interpret, and limits the length.
fn printable(text: &str) -> String {
    text.chars()
        .take(1_000)
        .map(|c| {
            if c.is_control() && c != '\n' {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(f, "{severity}: {}", self.message)?;
        write!(f, "\n  --> {}", printable(&self.file))?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        if !self.field.is_empty() {
            write!(f, " at {}", printable(&self.field))?;
        }
        if let Some(source) = &self.source {
            let Excerpt { text, caret } = excerpt(source, self.column, self.width);
            let number = self.line.to_string();
            let margin = number.len().max(4);
            write!(
                f,
                "\n {number:>margin$} | {text}\n {:margin$} | {caret}",
                ""
            )?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\nhint: {hint}")?;
        }
        Ok(())
    }
}

struct Excerpt {
    text: String,
    caret: String,
}

/// The line and the carets below it. A very long line is cut to the part around the place.
fn excerpt(source: &str, column: u32, width: u32) -> Excerpt {
    const MAX: usize = 120;
    let start = usize::try_from(column.saturating_sub(1)).unwrap_or(0);
    let skip = if source.chars().count() > MAX {
        start.saturating_sub(MAX / 2)
    } else {
        0
    };
    let text: String = source
        .chars()
        .skip(skip)
        .take(MAX)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    let before = start.saturating_sub(skip).min(MAX);
    let room = text.chars().count().saturating_sub(before).max(1);
    let width = usize::try_from(width).unwrap_or(1).clamp(1, room);
    Excerpt {
        text: text.trim_end().to_owned(),
        caret: format!("{}{}", " ".repeat(before), "^".repeat(width)),
    }
}

/// All problems, in the order of the files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    problems: Vec<Problem>,
    /// Number of errors beyond the maximum, which are not kept.
    more: usize,
}

/// Maximum number of problems that are kept: a broken file can have a hundred thousand.
const MAX_PROBLEMS: usize = 1_000;

impl Report {
    /// An empty report.
    pub fn new() -> Self {
        Self::default()
    }

    /// Inserts a problem in the order of its place. A duplicate is ignored.
    pub fn push(&mut self, problem: Problem) {
        if self.problems.len() >= MAX_PROBLEMS {
            self.more += usize::from(problem.severity == Severity::Error);
            return;
        }
        // Problems mostly arrive in order, so the search starts at the end.
        let before = |other: &Problem| other.place() <= problem.place();
        let after = self.problems.iter().rposition(before).map_or(0, |i| i + 1);
        let known = self.problems.iter().take(after).rev();
        let mut same_place = known.take_while(|other| other.place() == problem.place());
        if !same_place.any(|other| *other == problem) {
            self.problems.insert(after, problem);
        }
    }

    /// The first thousand, by file, line and column.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Whether there are no problems.
    pub fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }

    /// Whether there are errors, so that the files are rejected.
    pub fn has_errors(&self) -> bool {
        self.count(Severity::Error) > 0
    }

    /// Number of problems of a severity.
    pub fn count(&self, severity: Severity) -> usize {
        let kept = self.problems.iter();
        let kept = kept.filter(|problem| problem.severity == severity).count();
        match severity {
            Severity::Error => kept + self.more,
            Severity::Warning => kept,
        }
    }
}

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.problems.serialize(serializer)
    }
}

impl Extend<Problem> for Report {
    fn extend<I: IntoIterator<Item = Problem>>(&mut self, problems: I) {
        for problem in problems {
            self.push(problem);
        }
    }
}

impl FromIterator<Problem> for Report {
    fn from_iter<I: IntoIterator<Item = Problem>>(problems: I) -> Self {
        let mut report = Self::new();
        report.extend(problems);
        report
    }
}

impl IntoIterator for Report {
    type Item = Problem;
    type IntoIter = std::vec::IntoIter<Problem>;

    fn into_iter(self) -> Self::IntoIter {
        self.problems.into_iter()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.problems {
            write!(f, "{problem}\n\n")?;
        }
        if self.more > 0 {
            writeln!(f, "and {} more\n", self.more)?;
        }
        let many = |count: usize, what: &str| match count {
            1 => format!("1 {what}"),
            _ => format!("{count} {what}s"),
        };
        let errors = self.count(Severity::Error);
        let warnings = self.count(Severity::Warning);
        f.write_str(&many(errors, "error"))?;
        if warnings > 0 {
            write!(f, ", {}", many(warnings, "warning"))?;
        }
        Ok(())
    }
}

impl std::error::Error for Report {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_are_in_the_order_of_the_files_whatever_order_they_arrive_in() {
        let at = |file: &str, line, column| Problem::error(file, "x").at(line, column, 1);
        let report = Report::from_iter([
            at("b", 1, 1),
            at("a", 2, 1),
            at("a", 1, 9),
            at("a", 1, 2).warning(),
            at("a", 2, 1),
            Problem::error("a", "the file as a whole"),
        ]);
        let places: Vec<_> = report.problems().iter().map(Problem::place).collect();
        assert_eq!(
            places,
            [
                ("a", 0, 0),
                ("a", 1, 2),
                ("a", 1, 9),
                ("a", 2, 1),
                ("b", 1, 1)
            ]
        );
        assert_eq!(report.count(Severity::Error), 4);
        assert_eq!(report.count(Severity::Warning), 1);
    }

    #[test]
    fn a_thousand_problems_are_kept_and_all_are_counted() {
        let report: Report = (1..=100_000)
            .map(|line| Problem::error("a", "x").at(line, 1, 1))
            .collect();
        assert_eq!(report.problems().len(), 1_000);
        assert_eq!(report.count(Severity::Error), 100_000);
        assert!(
            report
                .to_string()
                .ends_with("and 99000 more\n\n100000 errors")
        );
    }

    #[test]
    fn a_very_long_line_is_cut_to_the_part_around_the_place() {
        let text = format!("{}HERE{}", "a".repeat(5_000), "b".repeat(5_000));
        let problem = Problem::error("a", "x")
            .at(1, 5_001, 4)
            .quote(&text)
            .to_string();
        let lines: Vec<&str> = problem.lines().collect();
        assert!(
            lines[2].len() < 140 && lines[2].contains("HERE"),
            "{problem}"
        );
        assert_eq!(lines[2].find("HERE"), lines[3].find("^^^^"), "{problem}");
    }

    #[test]
    fn a_place_beyond_the_end_of_its_line_is_still_underlined() {
        let problem = Problem::error("a", "x")
            .at(1, 9, 3)
            .quote("abc")
            .to_string();
        assert!(problem.ends_with('^'), "{problem}");
    }
}
