//! HTTP/2 frames as bytes, for peers that break the protocol (RFC 9113 §4.1).

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::wait::limit;

/// What a client sends first.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The type of a GOAWAY frame.
const GOAWAY: u8 = 7;

/// The type of a SETTINGS frame.
pub const SETTINGS: u8 = 4;
/// The type of a PING frame.
pub const PING: u8 = 6;

/// One frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short payload");
    let mut bytes = length.to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Sends the preface and `frames`, and reads until the server ends the connection; this side stays open. Returns the error
/// code of the server's last GOAWAY, if it sent one (RFC 9113 §7).
///
/// # Panics
/// If the server does not end the connection, or sends anything but frames.
pub async fn ending(mut stream: impl AsyncRead + AsyncWrite + Unpin, frames: &[u8]) -> Option<u32> {
    let bytes = [PREFACE, frames].concat();
    // The server may close the connection before it has read everything.
    let _ = stream.write_all(&bytes).await;
    let _ = stream.flush().await;
    let mut answer = Vec::new();
    // The server may reset the connection after its last frame.
    let _ = limit(
        "the server to end an HTTP/2 connection",
        stream.read_to_end(&mut answer),
    )
    .await;
    let mut rest = answer.as_slice();
    let mut code = None;
    while let Some((&[high, middle, low, kind, _, _, _, _, _], after)) = rest.split_first_chunk() {
        let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        let (payload, after) = after
            .split_at_checked(length)
            .unwrap_or_else(|| panic!("not HTTP/2 frames: {answer:?}"));
        if kind == GOAWAY {
            code = payload
                .get(4..8)
                .and_then(|code| Some(u32::from_be_bytes(code.try_into().ok()?)));
        }
        rest = after;
    }
    assert!(rest.is_empty(), "not HTTP/2 frames: {answer:?}");
    code
}
