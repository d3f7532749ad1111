use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// Frame types (RFC 9113 §6).
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;

/// Flags of HEADERS.
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Error codes (RFC 9113 §7).
pub(crate) const FLOW_CONTROL_ERROR: u32 = 3;
pub(crate) const REFUSED_STREAM: u32 = 7;
pub(crate) const ENHANCE_YOUR_CALM: u32 = 11;

/// An HTTP/2 client that sends any frames, also such that no library sends.
pub(crate) struct RawH2 {
    stream: TcpStream,
}

#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// The status of HEADERS: an index of the static table (RFC 7541 appendix A), or a literal with its name.
    pub(crate) fn status(&self) -> u16 {
        assert_eq!(self.kind, HEADERS);
        match self.payload[0] {
            0x88 => 200,
            0x8c => 400,
            other => panic!("an unexpected first field {other:#x}"),
        }
    }

    /// The error code of a GOAWAY.
    pub(crate) fn goaway_code(&self) -> u32 {
        assert_eq!(self.kind, GOAWAY);
        number(&self.payload[4..8])
    }

    /// The error code of a RST_STREAM.
    pub(crate) fn reset_code(&self) -> u32 {
        assert_eq!(self.kind, RST_STREAM);
        number(&self.payload)
    }

    /// The number of bytes by which a WINDOW_UPDATE grows the window.
    pub(crate) fn increment(&self) -> u32 {
        assert_eq!(self.kind, WINDOW_UPDATE);
        number(&self.payload)
    }

    /// The value of a setting.
    pub(crate) fn setting(&self, id: u16) -> u32 {
        assert_eq!(self.kind, SETTINGS);
        let settings = self.payload.chunks(6);
        let mut of = settings.filter(|setting| setting[..2] == id.to_be_bytes());
        number(&of.next().expect("the setting is sent")[2..])
    }
}

fn number(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes.try_into().unwrap())
}

/// The bytes of a frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, length @ ..] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = length.to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

pub(crate) fn ping() -> Vec<u8> {
    frame(PING, 0, 0, b"12345678")
}

/// RST_STREAM with the code CANCEL.
pub(crate) fn cancel(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())
}

/// A complete `GET` request to `orders`.
pub(crate) fn request(stream: u32, path: &str) -> Vec<u8> {
    let flags = END_STREAM | END_HEADERS;
    frame(HEADERS, flags, stream, &block("GET", path, &[]))
}

/// A `GET` request with a field name that HTTP/2 does not allow.
pub(crate) fn malformed_request(stream: u32) -> Vec<u8> {
    let flags = END_STREAM | END_HEADERS;
    let block = block("GET", "/malformed", &[("connection", "close")]);
    frame(HEADERS, flags, stream, &block)
}

/// The head of a `POST` request whose body follows.
pub(crate) fn start_of_request(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &block("POST", path, &[]))
}

/// The trailers that end a request.
pub(crate) fn trailers(stream: u32, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &literals(fields))
}

fn block(method: &str, path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let head = [
        (":method", method),
        (":scheme", "http"),
        (":authority", "orders"),
        (":path", path),
    ];
    literals(&[&head, more].concat())
}

/// Fields as literals without indexing (RFC 7541 §6.2.2).
fn literals(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            block.extend(length(text.len()));
            block.extend(text.as_bytes());
        }
    }
    block
}

/// The length of a text, as an integer with a prefix of seven bits (RFC 7541 §5.1).
fn length(length: usize) -> Vec<u8> {
    let Some(mut rest) = length.checked_sub(127) else {
        return vec![u8::try_from(length).unwrap()];
    };
    let mut bytes = vec![127];
    while rest >= 128 {
        bytes.push(u8::try_from(rest % 128).unwrap() | 128);
        rest /= 128;
    }
    bytes.push(u8::try_from(rest).unwrap());
    bytes
}

impl RawH2 {
    /// A connection on which the preface and empty SETTINGS were sent.
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let mut this = Self { stream };
        let settings = frame(SETTINGS, 0, 0, &[]);
        let start = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &settings[..]].concat();
        this.send(&start).await;
        this
    }

    /// Sends bytes. The other side may have closed the connection: that shows when reading.
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
    }

    /// The next frame; `None` when the connection has ended.
    pub(crate) async fn frame(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).await.ok()?;
        let [high, middle, low, kind, _, stream @ ..] = head;
        let mut payload = vec![0; usize::try_from(number(&[0, high, middle, low])).unwrap()];
        self.stream.read_exact(&mut payload).await.ok()?;
        Some(Frame {
            kind,
            stream: number(&stream),
            payload,
        })
    }

    /// Reads up to the next frame of this type, which must come before a GOAWAY.
    pub(crate) async fn next(&mut self, kind: u8) -> Frame {
        loop {
            let frame = self.frame().await;
            let frame = frame.unwrap_or_else(|| panic!("ended without a frame of type {kind}"));
            if frame.kind == kind {
                return frame;
            }
            assert_ne!(frame.kind, GOAWAY, "{frame:?}");
        }
    }

    /// All frames to the end of the connection.
    pub(crate) async fn rest(mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Some(frame) = self.frame().await {
            frames.push(frame);
        }
        frames
    }
}
