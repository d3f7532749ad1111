//! Tracks a chunked body byte by byte (RFC 9112 §7.1), more strictly than most parsers, so that the proxy and every
//! server agree on its end.

use super::{head, violation::Violation};

/// The parser state of a chunked body.
#[derive(Debug, Default)]
pub struct Chunked {
    state: ChunkState,
    extensions: usize,
    trailers: Vec<u8>,
    trailer_fields: usize,
    line: usize,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum ChunkState {
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
            if self.state == ChunkState::End {
                break;
            }
            if let ChunkState::Data { left } = self.state {
                let here = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                rest = rest.get(here..).unwrap_or_default();
                let left = left - here as u64;
                self.state = if left == 0 {
                    ChunkState::DataCr
                } else {
                    ChunkState::Data { left }
                };
                continue;
            }
            self.state = self.step(*byte)?;
            rest = after;
        }
        Ok(bytes.len() - rest.len())
    }

    /// Whether the body is complete.
    pub fn ended(&self) -> bool {
        self.state == ChunkState::End
    }

    fn step(&mut self, byte: u8) -> Result<ChunkState, Violation> {
        Ok(match (self.state, byte) {
            (ChunkState::SizeStart, _) => ChunkState::Size {
                size: hex(byte)?,
                digits: 1,
            },
            (ChunkState::Size { size, .. }, b'\r') => ChunkState::SizeLf { size },
            (ChunkState::Size { size, .. }, b';') => self.extension(size)?,
            (ChunkState::Size { size, digits }, _) if digits < 15 => ChunkState::Size {
                size: size << 4 | hex(byte)?,
                digits: digits + 1,
            },
            (ChunkState::Extension { size }, b'\r') => ChunkState::SizeLf { size },
            (ChunkState::Extension { size }, 0x20..=0x7e | b'\t') => self.extension(size)?,
            (ChunkState::SizeLf { size: 0 }, b'\n') => ChunkState::Trailer,
            (ChunkState::SizeLf { size }, b'\n') => ChunkState::Data { left: size },
            (ChunkState::DataCr, b'\r') => ChunkState::DataLf,
            (ChunkState::DataLf, b'\n') => ChunkState::SizeStart,
            (ChunkState::Trailer, b'\r') => ChunkState::TrailerLf,
            (ChunkState::Trailer, b'\n') => return Err(Violation::LineEnd),
            (ChunkState::Trailer, _) => {
                if self.trailers.len() >= MAX_TRAILERS {
                    return Err(Violation::Trailer);
                }
                self.trailers.push(byte);
                ChunkState::Trailer
            }
            (ChunkState::TrailerLf, b'\n') => self.trailer_line()?,
            (ChunkState::SizeLf { .. } | ChunkState::TrailerLf, _) => {
                return Err(Violation::LineEnd);
            }
            _ => return Err(Violation::Chunk),
        })
    }

    fn extension(&mut self, size: u64) -> Result<ChunkState, Violation> {
        self.extensions += 1;
        if self.extensions > MAX_EXTENSIONS {
            return Err(Violation::ChunkExtensions);
        }
        Ok(ChunkState::Extension { size })
    }

    /// Checks one complete line of the trailer section, the last one in `trailers`.
    fn trailer_line(&mut self) -> Result<ChunkState, Violation> {
        let line = self.trailers.get(self.line..).unwrap_or_default();
        if line.is_empty() {
            return Ok(ChunkState::End);
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
        Ok(ChunkState::Trailer)
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
        && !crate::protocol::reserved::is_reserved(name)
}
