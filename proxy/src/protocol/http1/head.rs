//! Validates the bytes of one request head before anything else reads them.

use super::violation::Violation;

/// How the body after a head is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// A fixed number of bytes.
    Length(u64),
    /// Chunks and trailers.
    Chunked,
}

/// What the guard needs to know about a valid head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The framing of its body.
    pub framing: Framing,
    /// Whether it requests another protocol: the following bytes are not HTTP if the response is 101.
    pub upgrade: bool,
}

/// Maximum length of a request target, in bytes.
pub const MAX_TARGET: usize = 8 << 10;
/// Maximum size of a header section with the request line, in bytes.
pub const MAX_HEAD: usize = 64 << 10;
/// Maximum number of fields.
pub const MAX_FIELDS: usize = 100;
const MAX_METHOD: usize = 32;

/// Finds the end of a head in `bytes`; the first `searched` bytes were already searched.
///
/// Returns the head's length including its last CR LF, or `None` when more bytes are needed.
///
/// # Errors
/// A line that does not end in CR LF, or a head that is too large.
pub fn find_end(bytes: &[u8], searched: usize) -> Result<Option<usize>, Violation> {
    // The end may straddle old and new bytes.
    let mut from = searched.saturating_sub(3);
    while let Some(at) = bytes
        .get(from..)
        .and_then(|rest| memchr::memchr(b'\n', rest))
    {
        let lf = from + at;
        let before = bytes.get(..lf).unwrap_or_default();
        if !before.ends_with(b"\r") {
            return Err(Violation::LineEnd);
        }
        if before.len() == 1 {
            return Err(Violation::RequestLine);
        }
        if before.ends_with(b"\r\n\r") {
            let end = lf + 1;
            return if end > MAX_HEAD {
                Err(too_large(bytes))
            } else {
                Ok(Some(end))
            };
        }
        from = lf + 1;
    }
    if bytes.len() > MAX_TARGET + MAX_METHOD + 16 && memchr::memchr(b'\n', bytes).is_none() {
        return Err(Violation::TargetTooLong);
    }
    if bytes.len() > MAX_HEAD {
        Err(Violation::HeadTooLarge)
    } else {
        Ok(None)
    }
}

fn too_large(bytes: &[u8]) -> Violation {
    match memchr::memchr(b'\n', bytes) {
        Some(line) if line <= MAX_TARGET + MAX_METHOD + 16 => Violation::HeadTooLarge,
        _ => Violation::TargetTooLong,
    }
}

/// Validates a complete head, from its first byte to its last CR LF.
///
/// # Errors
/// The first violation.
pub fn parse(head: &[u8]) -> Result<Head, Violation> {
    let mut lines = Lines { rest: head };
    let line = RequestLine::parse(lines.next().ok_or(Violation::RequestLine)?)?;
    let mut fields = Fields::default();
    for text in lines.by_ref() {
        if text.is_empty() {
            break;
        }
        fields.take(text)?;
    }
    if !lines.rest.is_empty() {
        return Err(Violation::LineEnd);
    }
    fields.conclude(&line)
}

/// Lines that end in CR LF; a bare CR stays in its line, where the checks find it.
struct Lines<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let lf = memchr::memchr(b'\n', self.rest)?;
        let (line, rest) = self.rest.split_at_checked(lf + 1)?;
        self.rest = rest;
        line.strip_suffix(b"\r\n")
    }
}

struct RequestLine {
    http10: bool,
}

impl RequestLine {
    fn parse(line: &[u8]) -> Result<Self, Violation> {
        let space = memchr::memchr(b' ', line).ok_or(Violation::RequestLine)?;
        let (method, rest) = line.split_at_checked(space).ok_or(Violation::RequestLine)?;
        let rest = rest.get(1..).unwrap_or_default();
        if method.is_empty() || method.len() > MAX_METHOD || !method.iter().all(|b| is_token(*b)) {
            return Err(Violation::RequestLine);
        }
        let space = memchr::memchr(b' ', rest).ok_or(Violation::RequestLine)?;
        let (target, version) = rest.split_at_checked(space).ok_or(Violation::RequestLine)?;
        let http10 = match version.get(1..).unwrap_or_default() {
            b"HTTP/1.1" => false,
            b"HTTP/1.0" => true,
            other if is_version(other) => return Err(Violation::Version),
            _ => return Err(Violation::RequestLine),
        };
        if target.len() > MAX_TARGET {
            return Err(Violation::TargetTooLong);
        }
        check_target(method, target)?;
        Ok(Self { http10 })
    }
}

fn is_version(text: &[u8]) -> bool {
    text.strip_prefix(b"HTTP/").is_some_and(|number| {
        !number.is_empty() && number.iter().all(|b| b.is_ascii_digit() || *b == b'.')
    })
}

fn check_target(method: &[u8], target: &[u8]) -> Result<(), Violation> {
    // `#` is never sent (RFC 9112 §3.2), and some bytes are not valid in a URI (RFC 3986 appendix A). hyper would
    // respond to them itself, unlogged. The path is validated further in `request_head`.
    if !target
        .iter()
        .all(|b| matches!(b, 0x21..=0x7e) && !matches!(b, b'#' | b'"' | b'<' | b'>' | b'`'))
    {
        return Err(Violation::Target);
    }
    let allowed = match target.first() {
        Some(b'/') => method != b"CONNECT",
        Some(b'*') => target.len() == 1 && method == b"OPTIONS",
        Some(_) if method == b"CONNECT" => !target.contains(&b'/'),
        Some(_) => {
            let head = target.get(..8).unwrap_or(target);
            head.eq_ignore_ascii_case(b"https://")
                || head
                    .get(..7)
                    .is_some_and(|start| start.eq_ignore_ascii_case(b"http://"))
        }
        None => false,
    };
    // Forms other than origin-form are checked by the URI parser that reads them next.
    let parses = || matches!(target, [b'/' | b'*', ..]) || http::Uri::try_from(target).is_ok();
    if allowed && parses() {
        Ok(())
    } else {
        Err(Violation::Target)
    }
}

/// The fields that determine the framing, and those that must be unique.
#[derive(Default)]
struct Fields {
    count: usize,
    once: u8,
    length: Option<u64>,
    chunked: bool,
    upgrade: bool,
    connection_upgrade: bool,
}

const HOST: u8 = 1;
const LENGTH: u8 = 1 << 1;
const ENCODING: u8 = 1 << 2;
const AUTHORIZATION: u8 = 1 << 3;
const DPOP: u8 = 1 << 4;
const CONTENT_TYPE: u8 = 1 << 5;
const TRACEPARENT: u8 = 1 << 6;

impl Fields {
    fn take(&mut self, line: &[u8]) -> Result<(), Violation> {
        self.count += 1;
        if self.count > MAX_FIELDS {
            return Err(Violation::TooManyFields);
        }
        let (name, value) = split_field(line)?;
        // Only names of these lengths matter here.
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => self.set_once(HOST, Violation::Host),
            4 if name.eq_ignore_ascii_case(b"dpop") => self.set_once(DPOP, Violation::Repeated),
            7 if name.eq_ignore_ascii_case(b"upgrade") => {
                self.upgrade = true;
                Ok(())
            }
            10 if name.eq_ignore_ascii_case(b"connection") => {
                self.connection_upgrade |= value
                    .split(|b| *b == b',')
                    .any(|option| option.trim_ascii().eq_ignore_ascii_case(b"upgrade"));
                Ok(())
            }
            11 if name.eq_ignore_ascii_case(b"traceparent") => {
                self.set_once(TRACEPARENT, Violation::Repeated)
            }
            12 if name.eq_ignore_ascii_case(b"content-type") => {
                self.set_once(CONTENT_TYPE, Violation::Repeated)
            }
            13 if name.eq_ignore_ascii_case(b"authorization") => {
                self.set_once(AUTHORIZATION, Violation::Repeated)
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                self.length = Some(parse_length(value)?);
                self.set_once(LENGTH, Violation::ContentLength)
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                self.chunked = value.eq_ignore_ascii_case(b"chunked");
                if !self.chunked {
                    return Err(Violation::TransferEncoding);
                }
                self.set_once(ENCODING, Violation::TransferEncoding)
            }
            _ => Ok(()),
        }
    }

    fn set_once(&mut self, field: u8, otherwise: Violation) -> Result<(), Violation> {
        if self.once & field != 0 {
            return Err(otherwise);
        }
        self.once |= field;
        Ok(())
    }

    fn conclude(self, line: &RequestLine) -> Result<Head, Violation> {
        if self.chunked && line.http10 {
            return Err(Violation::TransferEncoding);
        }
        if self.chunked && self.length.is_some() {
            return Err(Violation::LengthAndEncoding);
        }
        if self.once & HOST == 0 {
            return Err(Violation::Host);
        }
        let framing = if self.chunked {
            Framing::Chunked
        } else {
            Framing::Length(self.length.unwrap_or(0))
        };
        Ok(Head {
            framing,
            upgrade: self.upgrade && self.connection_upgrade && !line.http10,
        })
    }
}

/// Name and value of a field line without its CR LF (RFC 9112 §5).
pub(super) fn split_field(line: &[u8]) -> Result<(&[u8], &[u8]), Violation> {
    if matches!(line.first(), Some(b' ' | b'\t')) {
        return Err(Violation::Folded);
    }
    let colon = memchr::memchr(b':', line).ok_or(Violation::FieldName)?;
    let (name, value) = line.split_at_checked(colon).ok_or(Violation::FieldName)?;
    // For servers that treat `-` and `_` alike, `x_merlon_user` would be a name that the proxy strips.
    if name.is_empty() || !name.iter().all(|b| is_token(*b) && *b != b'_') {
        return Err(Violation::FieldName);
    }
    let value = value.get(1..).unwrap_or_default();
    if value.contains(&b'\r') {
        return Err(Violation::LineEnd);
    }
    if !value
        .iter()
        .all(|b| *b >= 0x20 && *b != 0x7f || *b == b'\t')
    {
        return Err(Violation::FieldValue);
    }
    Ok((name, value.trim_ascii()))
}

fn parse_length(value: &[u8]) -> Result<u64, Violation> {
    let plain = match value {
        [] => false,
        [b'0'] => true,
        [b'0', ..] => false,
        digits => digits.len() <= 18 && digits.iter().all(u8::is_ascii_digit),
    };
    if !plain {
        return Err(Violation::ContentLength);
    }
    Ok(value
        .iter()
        .fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}

/// `tchar` of RFC 9110 §5.6.2.
pub(super) const fn is_token(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z'
        | b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~')
}
