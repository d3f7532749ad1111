//! HTTP/2 frames.

use merlon_proxy::{limits::Limits, protocol::http2::FrameCounter};

use crate::input::Input;

/// The frame counter ends a connection at the first frame beyond a limit, and not before, however its bytes are split.
pub(crate) fn frames(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let size = usize::from(input.byte()).max(1);
    let bytes = input.rest();
    let limits = Limits::default();
    // Also with limits that short inputs reach.
    let small = Limits {
        h2_control_frames: 3,
        h2_reset_frames: 5,
        ..limits
    };
    counted(bytes, size, &limits);
    counted(bytes, size, &small);
}

fn counted(bytes: &[u8], size: usize, limits: &Limits) {
    let exceeded = first_exceeding(bytes, limits);
    let whole = FrameCounter::new(limits).process(bytes);
    assert_eq!(whole, exceeded.is_none());

    let mut counter = FrameCounter::new(limits);
    let mut read = 0;
    let mut pieces = bytes.chunks(size);
    let stopped = pieces.any(|piece| {
        read += piece.len();
        !counter.process(piece)
    });
    match exceeded {
        None => assert!(!stopped),
        Some(end) => {
            assert!(
                stopped && read >= end && read - end < size,
                "at {read} instead of {end}"
            );
        }
    }
}

/// The end of the header of the first frame that exceeds a limit (RFC 9113 §4.1 and §6).
fn first_exceeding(bytes: &[u8], limits: &Limits) -> Option<usize> {
    let (mut at, mut control, mut resets) = (24, 0, 0);
    while let Some([high, middle, low, kind, ..]) = bytes.get(at..at + 9) {
        match kind {
            2 | 4 | 6 => control += 1,
            3 => resets += 1,
            _ => {}
        }
        at += 9;
        if control > limits.h2_control_frames || resets > limits.h2_reset_frames {
            return Some(at);
        }
        at += usize::from(*high) << 16 | usize::from(*middle) << 8 | usize::from(*low);
    }
    None
}
