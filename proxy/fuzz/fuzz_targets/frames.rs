//! The frame counter's result does not depend on how the bytes of an HTTP/2 connection are split.
#![no_main]

use libfuzzer_sys::fuzz_target;
use merlon_proxy::protocol::http2::FrameCounter;

fuzz_target!(|input: (u8, &[u8])| {
    let (size, bytes) = input;
    let whole = FrameCounter::default().process(bytes);
    let mut counter = FrameCounter::default();
    let pieces = bytes.chunks(usize::from(size).max(1)).all(|piece| counter.process(piece));
    assert_eq!(whole, pieces);
});
