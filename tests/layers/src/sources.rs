//! Paths into the own crate, read from Rust source text.

use std::{
    fs, io,
    iter::Peekable,
    path::{Path, PathBuf},
    vec::IntoIter,
};

/// One path that begins with `crate` or `super`; a group is several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Import {
    /// The line of the path's first word, from 1.
    pub line: usize,
    /// As written, with groups resolved: `super::super::state::Snapshot`.
    pub written: String,
    /// From the crate root: `state`, `Snapshot`.
    pub absolute: Vec<String>,
}

impl Import {
    /// The top-level module. `None` for the crate root itself.
    #[must_use]
    pub fn target(&self) -> Option<&str> {
        let first = self.absolute.first().map(String::as_str);
        first.filter(|first| *first != "*")
    }
}

/// The `.rs` files below a directory, sorted.
pub(crate) fn rust_files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            files.append(&mut rust_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The module path of a file, relative to `src`. `lib.rs` counts as a module `lib`.
pub(crate) fn module_path(file: &Path) -> Vec<String> {
    let file = file.with_extension("");
    let parts = file.iter().map(|part| part.to_string_lossy().into_owned());
    parts.filter(|part| part != "mod").collect()
}

/// The imports in one file, whose module is `module`.
#[must_use]
pub fn imports(module: &[String], text: &str) -> Vec<Import> {
    let mut module = match module {
        [root] if root == "lib" => Vec::new(),
        _ => module.to_vec(),
    };
    let mut imports = Vec::new();
    // The depths of braces at which an inline module began.
    let (mut depth, mut inline) = (0_usize, Vec::new());
    let mut tokens = tokens(text).into_iter().peekable();
    while let Some(token) = tokens.next() {
        match token.text.as_str() {
            "{" => depth += 1,
            "}" => {
                depth = depth.saturating_sub(1);
                if inline.last() == Some(&depth) {
                    inline.pop();
                    module.pop();
                }
            }
            "mod" => {
                let name = tokens.next().map(|name| name.text).unwrap_or_default();
                if tokens.next_if(|token| token.text == "{").is_some() {
                    inline.push(depth);
                    module.push(name);
                    depth += 1;
                }
            }
            "crate" | "super" => {
                let absolute = match token.text.as_str() {
                    "crate" => Vec::new(),
                    _ => parent(&module),
                };
                let start = Import {
                    line: token.line,
                    written: token.text,
                    absolute,
                };
                follow(start, &mut tokens, &mut imports);
            }
            _ => {}
        }
    }
    imports
}

fn parent(module: &[String]) -> Vec<String> {
    let mut parent = module.to_vec();
    parent.pop();
    parent
}

/// Reads what follows a path's first word. `crate` or `super` alone, as in `pub(super)`, is no import.
fn follow(mut path: Import, tokens: &mut Peekable<IntoIter<Token>>, imports: &mut Vec<Import>) {
    let mut alone = true;
    while tokens.next_if(|token| token.text == "::").is_some() {
        alone = false;
        let Some(token) = tokens.peek() else { break };
        match token.text.as_str() {
            "{" => {
                tokens.next();
                return group(&path, tokens, imports);
            }
            "<" => break,
            "super" => path.absolute = parent(&path.absolute),
            "self" => {}
            name => path.absolute.push(name.to_owned()),
        }
        path.written = format!("{}::{}", path.written, token.text);
        tokens.next();
    }
    if !alone {
        imports.push(path);
    }
}

/// Reads `a::b, c}` after `path::{`.
fn group(path: &Import, tokens: &mut Peekable<IntoIter<Token>>, imports: &mut Vec<Import>) {
    while let Some(token) = tokens.next() {
        match token.text.as_str() {
            "}" => return,
            "," => {}
            "as" => {
                tokens.next();
            }
            name => {
                let mut member = path.clone();
                member.line = token.line;
                member.written = format!("{}::{name}", path.written);
                match name {
                    "self" => {}
                    "super" => member.absolute = parent(&member.absolute),
                    _ => member.absolute.push(name.to_owned()),
                }
                if tokens.peek().is_some_and(|next| next.text == "::") {
                    follow(member, tokens, imports);
                } else {
                    imports.push(member);
                }
            }
        }
    }
}

struct Token {
    line: usize,
    text: String,
}

/// Words, `::` and single characters, without comments, strings, characters and lifetimes.
fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = text;
    let mut line = 1;
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some(length) = raw_string(rest) {
            length
        } else if first == '"' || rest.starts_with("b\"") || rest.starts_with("c\"") {
            string(rest)
        } else if first == '\'' {
            character(rest)
        } else if first.is_alphabetic() || first == '_' {
            rest.find(|c: char| !c.is_alphanumeric() && c != '_')
                .unwrap_or(rest.len())
        } else if rest.starts_with("::") {
            2
        } else {
            first.len_utf8()
        };
        let (token, after) = rest.split_at_checked(length).unwrap_or((rest, ""));
        let skipped = ["//", "/*", "\"", "'"];
        let is_string = token.len() > 1 && token.ends_with(['"', '#']);
        if !first.is_whitespace() && !is_string && !skipped.iter().any(|s| token.starts_with(s)) {
            let text = token.to_owned();
            tokens.push(Token { line, text });
        }
        line += token.matches('\n').count();
        rest = after;
    }
    tokens
}

/// Block comments nest.
fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        if rest.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with("*/") {
            depth -= 1;
            at += 2;
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// `r"…"`, `br#"…"#` and such. Not `r#type`.
fn raw_string(text: &str) -> Option<usize> {
    let body = ["br", "cr", "r"]
        .iter()
        .find_map(|prefix| text.strip_prefix(prefix))?;
    let hashes = body.chars().take_while(|c| *c == '#').count();
    let content = body.get(hashes..)?.strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let length = content.find(&end).map(|at| at + end.len());
    let before = text.len() - content.len();
    Some(before + length.unwrap_or(content.len()))
}

fn string(text: &str) -> usize {
    let start = text.find('"').unwrap_or(0) + 1;
    let mut escaped = false;
    for (at, c) in text.char_indices().skip_while(|(at, _)| *at < start) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// A character literal, or the apostrophe and name of a lifetime or label.
fn character(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), Some((at, escaped))) => {
            // `'\''` and `'\u{1F600}'`: the closing apostrophe comes after the escaped character.
            let after = at + escaped.len_utf8();
            let end = text.get(after..).and_then(|rest| rest.find('\''));
            end.map_or(text.len(), |end| after + end + 1)
        }
        (Some(_), Some((at, '\''))) => at + 1,
        (Some((at, _)), _) => {
            let name = text.get(at..).unwrap_or_default();
            let end = name.find(|c: char| !c.is_alphanumeric() && c != '_');
            at + end.unwrap_or(name.len()).max(1)
        }
        (None, _) => text.len(),
    }
}
