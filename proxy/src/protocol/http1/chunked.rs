//! Tracks a chunked body byte by byte (RFC 9112 §7.1), more strictly than most parsers, so that the proxy and every
//! server agree on its end.

use super::{Violation, head};

/// The parser state of a chunked body.
#[derive(Debug, Default)]
pub struct Chunked {
    at: At,
    extensions: usize,
    trailers: Vec<u8>,
    trailer_fields: usize,
    line: usize,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum At {
    #[default]
    SizeStart,
    Size {
        size: u64,
        digits: u8,
    },
    Extension {
        size: u64,
    },
    SizeLf {
        size: u64,
    },
    Data {
        left: u64,
    },
    DataCr,
    DataLf,
    Trailer,
    TrailerLf,
    End,
}

/// Maximum bytes of chunk extensions in one body.
pub const MAX_EXTENSIONS: usize = 16 << 10;
/// Maximum size of the trailer section, in bytes.
pub const MAX_TRAILERS: usize = 8 << 10;
/// Maximum number of trailers.
pub const MAX_TRAILER_FIELDS: usize = 20;

impl Chunked {
    /// Processes `bytes` and returns how many of them belong to this body; [`Chunked::ended`] returns whether it is
    /// complete.
    ///
    /// # Errors
    /// The violation of the framing.
    pub fn follow(&mut self, bytes: &[u8]) -> Result<usize, Violation> {
        let mut rest = bytes;
        while let Some((byte, after)) = rest.split_first() {
            if self.at == At::End {
                break;
            }
            if let At::Data { left } = self.at {
                let here = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                rest = rest.get(here..).unwrap_or_default();
                let left = left - here as u64;
                self.at = if left == 0 {
                    At::DataCr
                } else {
                    At::Data { left }
                };
                continue;
            }
            self.at = self.step(*byte)?;
            rest = after;
        }
        Ok(bytes.len() - rest.len())
    }

    /// Whether the body is complete.
    pub fn ended(&self) -> bool {
        self.at == At::End
    }

    fn step(&mut self, byte: u8) -> Result<At, Violation> {
        Ok(match (self.at, byte) {
            (At::SizeStart, _) => At::Size {
                size: hex(byte)?,
                digits: 1,
            },
            (At::Size { size, .. }, b'\r') => At::SizeLf { size },
            (At::Size { size, .. }, b';') => self.extension(size)?,
            (At::Size { size, digits }, _) if digits < 15 => At::Size {
                size: size << 4 | hex(byte)?,
                digits: digits + 1,
            },
            (At::Extension { size }, b'\r') => At::SizeLf { size },
            (At::Extension { size }, 0x20..=0x7e | b'\t') => self.extension(size)?,
            (At::SizeLf { size: 0 }, b'\n') => At::Trailer,
            (At::SizeLf { size }, b'\n') => At::Data { left: size },
            (At::DataCr, b'\r') => At::DataLf,
            (At::DataLf, b'\n') => At::SizeStart,
            (At::Trailer, b'\r') => At::TrailerLf,
            (At::Trailer, b'\n') => return Err(Violation::LineEnd),
            (At::Trailer, _) => {
                if self.trailers.len() >= MAX_TRAILERS {
                    return Err(Violation::Trailer);
                }
                self.trailers.push(byte);
                At::Trailer
            }
            (At::TrailerLf, b'\n') => self.trailer_line()?,
            (At::SizeLf { .. } | At::TrailerLf, _) => return Err(Violation::LineEnd),
            _ => return Err(Violation::Chunk),
        })
    }

    fn extension(&mut self, size: u64) -> Result<At, Violation> {
        self.extensions += 1;
        if self.extensions > MAX_EXTENSIONS {
            return Err(Violation::ChunkExtensions);
        }
        Ok(At::Extension { size })
    }

    /// Checks one complete line of the trailer section, the last one in `trailers`.
    fn trailer_line(&mut self) -> Result<At, Violation> {
        let line = self.trailers.get(self.line..).unwrap_or_default();
        if line.is_empty() {
            return Ok(At::End);
        }
        let (name, _) = head::split_field(line).map_err(|_| Violation::Trailer)?;
        if !may_be_trailer(name) {
            return Err(Violation::Trailer);
        }
        self.trailer_fields += 1;
        if self.trailer_fields > MAX_TRAILER_FIELDS {
            return Err(Violation::Trailer);
        }
        self.line = self.trailers.len();
        Ok(At::Trailer)
    }
}

fn hex(byte: u8) -> Result<u64, Violation> {
    char::from(byte)
        .to_digit(16)
        .map(u64::from)
        .ok_or(Violation::Chunk)
}

/// Whether a field is allowed as a trailer. Trailers arrive after the decision, so framing, routing, authentication and
/// identity fields are not (RFC 9110 §6.5.1).
pub fn may_be_trailer(name: &[u8]) -> bool {
    const NEVER: [&[u8]; 20] = [
        b"authorization",
        b"proxy-authorization",
        b"cookie",
        b"set-cookie",
        b"host",
        b"content-length",
        b"transfer-encoding",
        b"te",
        b"trailer",
        b"connection",
        b"upgrade",
        b"content-type",
        b"content-encoding",
        b"content-range",
        b"expect",
        b"max-forwards",
        b"cache-control",
        b"range",
        b"dpop",
        b"forwarded",
    ];
    !NEVER.iter().any(|never| name.eq_ignore_ascii_case(never))
        && !crate::protocol::reserved::is_ours(name)
}
