//! Output to standard output and standard error.

use std::io::{self, Write as _};

use clap::ValueEnum;
use serde::Serialize;

/// Output format.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// Plain text.
    #[default]
    Text,
    /// JSON, for programs.
    Json,
}

/// Writes a line. A closed pipe (`| head`) is not an error.
pub(crate) fn print_line(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Writes a line to standard error.
pub(crate) fn eprint_line(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Writes a value as indented JSON.
pub(crate) fn print_json(value: &impl Serialize) {
    print_line(&serde_json::to_string_pretty(value).unwrap_or_default());
}

/// Escapes the control characters of untrusted text, which could control a terminal (CWE-150).
pub(crate) fn printable(text: &str) -> String {
    let controls = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if controls(character) {
            out.extend(character.escape_unicode());
        } else {
            out.push(character);
        }
    }
    out
}

/// A duration in its two largest units: `41s`, `12m`, `23h 59m`, `6d 3h`.
pub(crate) fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m", seconds / 60),
        3_600..86_400 => format!("{}h {}m", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(printable("a\u{1b}[31m\u{202e}é"), "a\\u{1b}[31m\\u{202e}é");
    }

    #[test]
    fn spans_are_printed_in_their_two_largest_units() {
        let printed = [0, 59, 60, 3_599, 3_600, 86_399, 86_400, 529_200].map(span);
        assert_eq!(
            printed,
            [
                "0s", "59s", "1m", "59m", "1h 0m", "23h 59m", "1d 0h", "6d 3h"
            ]
        );
    }
}
