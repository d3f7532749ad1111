//! Path normalisation, with one result for policy and upstream.
//!
//! A path that two programs interpret differently can bypass policies. So there is one algorithm, its result is what
//! policies match *and* what is forwarded, and an ambiguous path is rejected.

use std::borrow::Cow;

/// Maximum length of a path, in bytes.
pub const MAX_PATH: usize = 8 << 10;

/// Why a path is rejected: reason code `http.path`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PathProblem {
    /// Not origin-form (RFC 9112 §3.2.1). `*`, which only `OPTIONS` uses, is handled before.
    #[error("the path does not begin with `/`")]
    NotAbsolute,
    /// Longer than [`MAX_PATH`]: 414.
    #[error("the path is longer than 8 KiB")]
    TooLong,
    /// A byte that is not allowed in a path (RFC 3986 §3.3), or that some programs treat as `/`.
    #[error("the path contains a character that is not allowed")]
    ForbiddenByte,
    /// `%` without two hexadecimal digits.
    #[error("the path contains an invalid percent-encoding")]
    BadEscape,
    /// `%00`–`%1F` or `%7F`.
    #[error("the path contains a percent-encoded control character")]
    EscapedControl,
    /// `%2F` or `%5C`: some programs decode them before they split the path, others do not.
    #[error("the path contains a percent-encoded `/` or `\\`")]
    EscapedSlash,
    /// `..` above the root.
    #[error("the path goes above the root")]
    LeavesRoot,
    /// A dot segment with parameters, such as `..;x`: some programs treat it as `..`, others do not.
    #[error("the path contains a dot segment with parameters")]
    DotSegmentWithParameters,
}

impl PathProblem {
    /// The HTTP status: 400, or 414.
    pub fn status(self) -> u16 {
        match self {
            Self::TooLong => 414,
            _ => 400,
        }
    }
}

/// Normalises a path without its query (RFC 3986 §6.2.2, and stricter): unreserved characters decoded once, other
/// percent-encodings in upper case, no dot segments, no empty segments, no `;parameters`. No case folding.
///
/// The result is stable: normalising it again changes nothing. It is borrowed when the path is already normal.
///
/// # Errors
/// When the path is ambiguous or invalid.
pub fn normalize(path: &str) -> Result<Cow<'_, str>, PathProblem> {
    if !path.starts_with('/') {
        return Err(PathProblem::NotAbsolute);
    }
    if path.len() > MAX_PATH {
        return Err(PathProblem::TooLong);
    }
    let mut plain = true;
    let mut previous = 0;
    for byte in path.bytes() {
        match byte {
            // A raw `?` would have started the query.
            ..=0x20 | 0x7f.. | b'\\' | b'#' | b'?' => return Err(PathProblem::ForbiddenByte),
            b'%' | b';' => plain = false,
            b'/' | b'.' if previous == b'/' => plain = false,
            _ => {}
        }
        previous = byte;
    }
    if plain {
        return Ok(Cow::Borrowed(path));
    }
    let decoded = decode_unreserved(path)?;
    let mut segments: Vec<&str> = Vec::new();
    // Whether the path ends in `/`, `.` or `..`.
    let mut open = true;
    for segment in decoded.split('/').skip(1) {
        let (bare, parameters) = match segment.split_once(';') {
            Some((bare, parameters)) => (bare, Some(parameters)),
            None => (segment, None),
        };
        if matches!(bare, "." | "..") && parameters.is_some() {
            return Err(PathProblem::DotSegmentWithParameters);
        }
        open = false;
        match bare {
            "" | "." => open = true,
            ".." => {
                segments.pop().ok_or(PathProblem::LeavesRoot)?;
                open = true;
            }
            bare => segments.push(bare),
        }
    }
    let mut normal = String::with_capacity(decoded.len());
    for segment in &segments {
        normal.push('/');
        normal.push_str(segment);
    }
    if open {
        normal.push('/');
    }
    Ok(Cow::Owned(normal))
}

fn decode_unreserved(path: &str) -> Result<String, PathProblem> {
    let mut decoded = String::with_capacity(path.len());
    let mut characters = path.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            decoded.push(character);
            continue;
        }
        let mut digit = || {
            let digit = characters.next().ok_or(PathProblem::BadEscape)?;
            digit
                .is_ascii_hexdigit()
                .then_some(digit.to_ascii_uppercase())
                .ok_or(PathProblem::BadEscape)
        };
        let (high, low) = (digit()?, digit()?);
        let value = high
            .to_digit(16)
            .zip(low.to_digit(16))
            .map(|(high, low)| high << 4 | low);
        match value.and_then(char::from_u32) {
            None => return Err(PathProblem::BadEscape),
            Some('\0'..='\x1f' | '\x7f') => return Err(PathProblem::EscapedControl),
            Some('/' | '\\') => return Err(PathProblem::EscapedSlash),
            Some(plain @ ('A'..='Z' | 'a'..='z' | '0'..='9' | '-' | '.' | '_' | '~')) => {
                decoded.push(plain)
            }
            Some(_) => decoded.extend(['%', high, low]),
        }
    }
    Ok(decoded)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_are_normalised_for_policy_and_upstream() {
        for (path, normal) in [
            ("/", "/"),
            ("/orders/1", "/orders/1"),
            ("/orders/", "/orders/"),
            ("//orders///1", "/orders/1"),
            ("/a/./b/../c", "/a/c"),
            ("/a/..", "/"),
            ("/a/.", "/a/"),
            ("/a/b/..", "/a/"),
            ("/%61dmin", "/admin"),
            ("/a/%2e%2E/b", "/b"),
            ("/caf%c3%a9", "/caf%C3%A9"),
            ("/%252e%252e/x", "/%252e%252e/x"),
            ("/admin;x=1/users;y", "/admin/users"),
            ("/a/;x/b", "/a/b"),
            ("/a;", "/a"),
            ("/.well-known/x", "/.well-known/x"),
            ("/...", "/..."),
            ("/a%3Bb", "/a%3Bb"),
            ("/Admin", "/Admin"),
        ] {
            assert_eq!(normalize(path).as_deref(), Ok(normal), "{path}");
        }
        assert!(matches!(normalize("/orders/1"), Ok(Cow::Borrowed(_))));
    }

    #[test]
    fn ambiguous_and_invalid_paths_are_rejected() {
        use PathProblem as P;
        for (path, problem) in [
            ("", P::NotAbsolute),
            ("*", P::NotAbsolute),
            ("orders", P::NotAbsolute),
            ("http://x/", P::NotAbsolute),
            ("/a b", P::ForbiddenByte),
            ("/a\\b", P::ForbiddenByte),
            ("/a#b", P::ForbiddenByte),
            ("/a\tb", P::ForbiddenByte),
            ("/caf\u{e9}", P::ForbiddenByte),
            ("/a\u{7f}", P::ForbiddenByte),
            ("/%", P::BadEscape),
            ("/%4", P::BadEscape),
            ("/%zz", P::BadEscape),
            ("/%+1", P::BadEscape),
            ("/%00", P::EscapedControl),
            ("/%0a", P::EscapedControl),
            ("/%7F", P::EscapedControl),
            ("/a%2Fb", P::EscapedSlash),
            ("/a%2fb", P::EscapedSlash),
            ("/a%5cb", P::EscapedSlash),
            ("/..", P::LeavesRoot),
            ("/a/../..", P::LeavesRoot),
            ("/%2e%2e/x", P::LeavesRoot),
            ("/a/..;x/b", P::DotSegmentWithParameters),
            ("/a/.;/b", P::DotSegmentWithParameters),
        ] {
            assert_eq!(normalize(path), Err(problem), "{path}");
        }
        let long = format!("/{}", "a".repeat(MAX_PATH));
        assert_eq!(normalize(&long), Err(P::TooLong));
        assert_eq!(P::TooLong.status(), 414);
    }

    proptest! {
        #[test]
        fn normalising_twice_changes_nothing(path in "/([a-c./;%]|%2[efEF5]|%61|%C3){0,24}") {
            if let Ok(normal) = normalize(&path) {
                let again = normalize(&normal);
                prop_assert_eq!(again.as_deref(), Ok(&*normal));
                prop_assert!(!normal.contains("//") && !normal.contains(';') && !normal.contains("/../"));
            }
        }
    }
}
