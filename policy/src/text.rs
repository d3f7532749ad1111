//! Reads the tokens of policy text and bounds it before Cedar's parser sees it.
//!
//! Cedar's parser, validator and printer recurse once per level of nesting and once per operator of a chain, so a few
//! kilobytes could exhaust any stack. Every policy within these bounds compiles on [`crate::stack`].

/// Bytes of a document's text.
pub const MAX_TEXT: usize = 1 << 20;

/// Policies in one document.
pub const MAX_POLICIES: usize = 2_000;

/// Bytes of one policy, from its first annotation to its `;`.
pub const MAX_POLICY: usize = 64 << 10;

/// Levels of brackets and of `if` in one policy.
pub const MAX_NESTING: usize = 256;

/// Operators in one policy: `&&`, `==`, `.`, `has`, `when`, … A path after `has` counts more, because Cedar tests each
/// of its prefixes.
pub const MAX_OPERATORS: usize = 1_024;

/// A token of policy text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token<'a> {
    /// A name, a keyword or a number.
    Word(&'a str),
    /// A string literal with its quotes.
    Text(&'a str),
    /// Any other token.
    Sign(&'a str),
}

/// The tokens of `text` with their offsets, without whitespace and comments. Any text has tokens: what Cedar's lexer
/// rejects is one of them or is skipped.
pub(crate) fn tokens(text: &str) -> impl Iterator<Item = (usize, Token<'_>)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        loop {
            let rest = text.get(at..).filter(|rest| !rest.is_empty())?;
            let start = at;
            let mut characters = rest.chars();
            let first = characters.next()?;
            let length = match first {
                _ if rest.starts_with("//") => {
                    // As in Cedar, a carriage return ends a comment, too.
                    at += rest.find(['\n', '\r']).unwrap_or(rest.len());
                    continue;
                }
                _ if first.is_whitespace() => {
                    at += first.len_utf8();
                    continue;
                }
                '"' => string_length(rest),
                '?' | '_' | 'a'..='z' | 'A'..='Z' | '0'..='9' => {
                    let word = |c: char| c == '_' || c.is_ascii_alphanumeric();
                    1 + rest.get(1..)?.find(|c| !word(c)).unwrap_or(rest.len() - 1)
                }
                _ => {
                    let two = rest.get(..2).unwrap_or_default();
                    let double = ["==", "!=", "<=", ">=", "||", "&&", "::"].contains(&two);
                    if double { 2 } else { first.len_utf8() }
                }
            };
            at += length;
            let token = rest.get(..length)?;
            return Some((
                start,
                match first {
                    '"' => Token::Text(token),
                    '?' | '_' | 'a'..='z' | 'A'..='Z' | '0'..='9' => Token::Word(token),
                    _ => Token::Sign(token),
                },
            ));
        }
    })
}

/// The length of the string literal at the start of `rest`, with its quotes; an unterminated one takes the rest.
fn string_length(rest: &str) -> usize {
    let mut escaped = false;
    for (at, character) in rest.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// A bound that a document exceeds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Excess {
    /// Where, as a byte offset; `None` for the whole document.
    pub(crate) at: Option<usize>,
    pub(crate) message: String,
    pub(crate) hint: &'static str,
}

/// The number of policies in a text, whether or not it is valid.
pub fn policies_in(text: &str) -> usize {
    let mut last = Token::Sign(";");
    let mut ends = 0;
    for (_, token) in tokens(text) {
        ends += usize::from(token == Token::Sign(";"));
        last = token;
    }
    // One without its `;` is incomplete.
    ends + usize::from(last != Token::Sign(";"))
}

/// The offset at which each policy of a text starts.
///
/// # Errors
/// Each policy's first excess, or the document's.
pub(crate) fn statements(text: &str) -> Result<Vec<usize>, Vec<Excess>> {
    const SPLIT_DOCUMENT: &str = "split it into several resources";
    let whole = |message: String| {
        vec![Excess {
            at: None,
            message,
            hint: SPLIT_DOCUMENT,
        }]
    };
    if text.len() > MAX_TEXT {
        return Err(whole(format!(
            "the policy text has {} bytes; the maximum is {MAX_TEXT} (1MiB)",
            text.len()
        )));
    }
    let mut starts = Vec::new();
    let mut excesses = Vec::new();
    let mut policy = None;
    for (at, token) in tokens(text) {
        let current = policy.get_or_insert_with(|| {
            starts.push(at);
            Measured::new(at)
        });
        if let Some(excess) = current.add(at, token) {
            excesses.push(excess);
        }
        if token == Token::Sign(";") {
            policy = None;
        }
        if starts.len() > MAX_POLICIES {
            return Err(whole(format!(
                "the policy text has more than {MAX_POLICIES} policies"
            )));
        }
    }
    if excesses.is_empty() {
        Ok(starts)
    } else {
        Err(excesses)
    }
}

/// One policy, as far as it was read.
struct Measured {
    start: usize,
    /// For each open bracket and the policy itself, the number of `if`s that are open in it.
    ifs: Vec<usize>,
    nesting: usize,
    operators: usize,
    /// The number of dots since `has`.
    dots_after_has: Option<usize>,
    /// Only the first excess is reported.
    exceeded: bool,
}

impl Measured {
    fn new(start: usize) -> Self {
        Self {
            start,
            ifs: vec![0],
            nesting: 0,
            operators: 0,
            dots_after_has: None,
            exceeded: false,
        }
    }

    fn add(&mut self, at: usize, token: Token<'_>) -> Option<Excess> {
        self.nest(token);
        self.operators += self.weight(token);
        let length = at - self.start;
        let (at, message, hint) = if self.exceeded {
            return None;
        } else if length >= MAX_POLICY {
            (
                self.start,
                format!("the policy has more than {MAX_POLICY} bytes (64KiB)"),
                "split it into several policies: one `permit` that holds is enough, and every `forbid` applies",
            )
        } else if self.nesting > MAX_NESTING {
            (
                at,
                format!("the policy has more than {MAX_NESTING} levels of brackets and `if`s here"),
                "split it into several policies: one `permit` that holds is enough, and every `forbid` applies",
            )
        } else if self.operators > MAX_OPERATORS {
            (
                at,
                format!("the policy has more than {MAX_OPERATORS} operators here"),
                "compare with a list instead of each value, such as `[\"a\", \"b\"].contains(…)`, or split it into several policies",
            )
        } else {
            return None;
        };
        self.exceeded = true;
        Some(Excess {
            at: Some(at),
            message,
            hint,
        })
    }

    fn nest(&mut self, token: Token<'_>) {
        match token {
            Token::Sign("(" | "[" | "{") => {
                self.ifs.push(0);
                self.nesting += 1;
            }
            Token::Sign(")" | "]" | "}") if self.ifs.len() > 1 => {
                let ifs = self.ifs.pop().unwrap_or_default();
                self.nesting = self.nesting.saturating_sub(ifs + 1);
            }
            // The expressions of a list do not nest in each other.
            Token::Sign(",") => {
                if let Some(ifs) = self.ifs.last_mut() {
                    self.nesting = self.nesting.saturating_sub(std::mem::take(ifs));
                }
            }
            Token::Word("if") => {
                if let Some(ifs) = self.ifs.last_mut() {
                    *ifs += 1;
                    self.nesting += 1;
                }
            }
            _ => {}
        }
    }

    fn weight(&mut self, token: Token<'_>) -> usize {
        match (token, &mut self.dots_after_has) {
            (Token::Word("has"), dots) => {
                *dots = Some(0);
                1
            }
            (Token::Sign("."), Some(dots)) => {
                *dots += 1;
                *dots
            }
            (Token::Word("if" | "in" | "is" | "like" | "when" | "unless"), dots) => {
                *dots = None;
                1
            }
            (Token::Word(_), _) => 0,
            (Token::Text(_), dots) => {
                *dots = None;
                0
            }
            (Token::Sign(sign), dots) => {
                *dots = None;
                let apart = ["(", ")", "[", "]", "{", "}", ",", ";", ":", "::", "@"];
                usize::from(!apart.contains(&sign))
            }
        }
    }
}

#[cfg(test)]
mod tests;
