/// The rule that a message violates. Each violation leads to a response that closes the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Violation {
    /// A line ends in a bare LF, or contains a bare CR (RFC 9112 §2.2).
    LineEnd = 1,
    /// The request line is not `method SP target SP version` (RFC 9112 §3).
    RequestLine,
    /// A version other than HTTP/1.1 and HTTP/1.0.
    Version,
    /// The request target has a form that its method does not allow, or a byte that is not valid in a URI (RFC 9112
    /// §3.2).
    Target,
    /// The request target is longer than 8 KiB.
    TargetTooLong,
    /// A field name is empty, is not a token, contains `_`, or is followed by a space (RFC 9112 §5.1).
    FieldName,
    /// A control character in a field value (RFC 9110 §5.5).
    FieldValue,
    /// A folded line (RFC 9112 §5.2).
    Folded,
    /// More than 64 KiB of fields.
    HeadTooLarge,
    /// More than 100 fields.
    TooManyFields,
    /// No `Host`, or more than one (RFC 9112 §3.2).
    Host,
    /// A field that must be unique is repeated.
    Repeated,
    /// `Content-Length` with a sign, a leading zero, a list, or no digits (RFC 9112 §6.3).
    ContentLength,
    /// `Transfer-Encoding` other than exactly one `chunked`, or in HTTP/1.0 (RFC 9112 §6.1).
    TransferEncoding,
    /// `Content-Length` beside `Transfer-Encoding` (RFC 9112 §6.3).
    LengthAndEncoding,
    /// A malformed chunk size, extension or end (RFC 9112 §7.1).
    Chunk,
    /// More than 16 KiB of chunk extensions in one body.
    ChunkExtensions,
    /// A trailer that is malformed, too large, or not allowed as a trailer (RFC 9110 §6.5.1).
    Trailer,
    /// The head was not complete in time.
    Timeout,
}

impl Violation {
    const ALL: [Self; 19] = [
        Self::LineEnd,
        Self::RequestLine,
        Self::Version,
        Self::Target,
        Self::TargetTooLong,
        Self::FieldName,
        Self::FieldValue,
        Self::Folded,
        Self::HeadTooLarge,
        Self::TooManyFields,
        Self::Host,
        Self::Repeated,
        Self::ContentLength,
        Self::TransferEncoding,
        Self::LengthAndEncoding,
        Self::Chunk,
        Self::ChunkExtensions,
        Self::Trailer,
        Self::Timeout,
    ];

    pub(super) fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|one| *one as u8 == code)
    }

    /// The violation as a sentence for the caller; it never quotes the request.
    pub const fn message(self) -> &'static str {
        match self {
            Self::LineEnd => "a line does not end in CR LF, or contains a bare CR",
            Self::RequestLine => "the request line is malformed",
            Self::Version => "only HTTP/1.0, HTTP/1.1 and HTTP/2 are supported",
            Self::Target => "the request target is malformed",
            Self::TargetTooLong => "the request target is longer than 8192 bytes",
            Self::FieldName => {
                "a header name is not a token, contains `_`, or is followed by a space"
            }
            Self::FieldValue => "a header value contains a control character",
            Self::Folded => "a header value is folded over several lines",
            Self::HeadTooLarge => "the headers are larger than 65536 bytes",
            Self::TooManyFields => "there are more than 100 headers",
            Self::Host => "there must be exactly one `Host` header",
            Self::Repeated => "a header that must be unique is repeated",
            Self::ContentLength => "`Content-Length` is not a single decimal number",
            Self::TransferEncoding => "`Transfer-Encoding` is not exactly one `chunked`",
            Self::LengthAndEncoding => "`Content-Length` and `Transfer-Encoding` are both present",
            Self::Chunk => "the chunked body is malformed",
            Self::ChunkExtensions => "the chunk extensions are larger than 16384 bytes",
            Self::Trailer => "a trailer is malformed or not allowed",
            Self::Timeout => "the request headers timed out",
        }
    }
}
