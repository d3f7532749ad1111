//! HTTP/2 frames that must not be accepted.

use merlon_tests::http2::{PING, ending, frame};

use super::mesh;

/// HTTP/2 frames that break the protocol, and the error code of the GOAWAY that answers them (RFC 9113 §7).
const INVALID_FRAMES: &[(&str, &[u8], u32)] = &[
    (
        "text instead of frames",
        b"nonsense that is no frame at all",
        FRAME_SIZE_ERROR,
    ),
    (
        "DATA on stream 0",
        b"\0\0\0\x04\0\0\0\0\0\0\0\x01\0\0\0\0\0\0x",
        PROTOCOL_ERROR,
    ),
    (
        "HEADERS on an even stream",
        b"\0\0\0\x04\0\0\0\0\0\0\0\x01\x01\x05\0\0\0\x02\x82",
        PROTOCOL_ERROR,
    ),
    (
        "SETTINGS of 5 bytes",
        b"\0\0\x05\x04\0\0\0\0\0xxxxx",
        PROTOCOL_ERROR,
    ),
    (
        "a frame of 16 MiB",
        b"\0\0\0\x04\0\0\0\0\0\xff\xff\xff\0\0\0\0\0\x01",
        FRAME_SIZE_ERROR,
    ),
    (
        "HEADERS that HPACK cannot decode",
        b"\0\0\0\x04\0\0\0\0\0\0\0\x02\x01\x05\0\0\0\x01\xff\xff",
        PROTOCOL_ERROR,
    ),
];

const PROTOCOL_ERROR: u32 = 1;
const FRAME_SIZE_ERROR: u32 = 6;

#[tokio::test]
async fn invalid_http_2_frames_of_a_program_end_its_connection() {
    let mesh = mesh().await;
    let web = mesh.as_workload("web");
    for (what, frames, code) in INVALID_FRAMES {
        let found = ending(web.tcp().await, frames).await;
        assert_eq!(found, Some(*code), "{what}");
    }
    web.get("orders", "/after-frames")
        .over_http2()
        .await
        .is_ok();
}

#[tokio::test]
async fn invalid_http_2_frames_of_a_peer_end_its_connection() {
    let mesh = mesh().await;
    let web = mesh.test_peer("web").await;
    for (what, frames, code) in INVALID_FRAMES {
        let found = web.to("orders").frames(frames).await;
        assert_eq!(found, Some(*code), "{what}");
    }
    web.to("orders").get("/after-frames").await.is_ok();
}

#[tokio::test]
async fn more_control_frames_than_a_connection_may_carry_end_it() {
    let mesh = mesh().await;
    let web = mesh.test_peer("web").await;
    let ping = frame(PING, 0, 0, b"8 bytes.");
    // The connection ends without GOAWAY: no more of its frames are read or answered.
    let found = web.to("orders").frames(&ping.repeat(2_000)).await;
    assert_eq!(found, None);
    web.to("orders").get("/after-pings").await.is_ok();
}
