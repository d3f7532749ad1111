//! How results are written.

use std::io::{self, Write as _};

use clap::ValueEnum;
use serde::Serialize;

/// The form of a result.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// Writes a line; a reader that went away (`| head`) is no reason to fail.
pub(crate) fn print_line(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// The same to standard error.
pub(crate) fn eprint_line(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Writes a value as indented JSON.
pub(crate) fn print_json(value: &impl Serialize) {
    print_line(&serde_json::to_string_pretty(value).unwrap_or_default());
}

/// Text of others for a terminal: what would steer it (CWE-150) is written as an escape.
pub(crate) fn printable(text: &str) -> String {
    let steers = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if steers(character) {
            out.extend(character.escape_unicode());
        } else {
            out.push(character);
        }
    }
    out
}

/// A span as people say it: `41s`, `12m`, `23h 59m`, `6d 3h`.
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
    fn what_would_steer_a_terminal_is_escaped() {
        assert_eq!(printable("a\u{1b}[31m\u{202e}é"), "a\\u{1b}[31m\\u{202e}é");
    }

    #[test]
    fn spans_are_said_in_their_two_largest_units() {
        let said = [0, 59, 60, 3_599, 3_600, 86_399, 86_400, 529_200].map(span);
        assert_eq!(
            said,
            [
                "0s", "59s", "1m", "59m", "1h 0m", "23h 59m", "1d 0h", "6d 3h"
            ]
        );
    }
}
