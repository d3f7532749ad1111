//! W3C Trace Context, level 1: parsed, forwarded, and created when missing.

use std::{cell::Cell, fmt::Write as _};

use http::{HeaderMap, HeaderName, HeaderValue};

/// The header that carries the trace.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// Vendor data; forwarded unchanged, and only together with a valid `traceparent`.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The trace that a request belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    /// Never zero.
    pub trace_id: u128,
    /// The sender's span; never zero.
    pub parent_id: u64,
    /// Bit 0: sampled.
    pub flags: u8,
}

impl TraceContext {
    /// Parses a `traceparent` (W3C Trace Context §3.2). Of a later version, only the fields of version 00 are read.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let version = hex(text.get(..2)?)?;
        match text.get(55) {
            None if version != 0xff => {}
            Some(b'-') if version != 0 && version != 0xff => {}
            _ => return None,
        }
        let dashes = [text.get(2)?, text.get(35)?, text.get(52)?];
        if dashes.iter().any(|byte| **byte != b'-') {
            return None;
        }
        let this = Self {
            trace_id: hex(text.get(3..35)?)?,
            parent_id: u64::try_from(hex(text.get(36..52)?)?).ok()?,
            flags: u8::try_from(hex(text.get(53..55)?)?).ok()?,
        };
        (this.trace_id != 0 && this.parent_id != 0).then_some(this)
    }

    /// Starts a new trace, not sampled.
    pub fn begin(random: &Random) -> Self {
        Self {
            trace_id: u128::from(random.next()) << 64 | u128::from(random.next()),
            parent_id: random.next(),
            flags: 0,
        }
    }

    /// The same trace, with `span_id` as the parent of the next hop.
    #[must_use]
    pub fn child(self, span_id: u64) -> Self {
        Self {
            parent_id: span_id,
            ..self
        }
    }

    /// Whether the sampled flag is set.
    pub fn sampled(self) -> bool {
        self.flags & 1 == 1
    }

    /// The header value.
    pub fn header(self) -> Option<HeaderValue> {
        let mut text = String::with_capacity(55);
        let Self {
            trace_id,
            parent_id,
            flags,
        } = self;
        write!(text, "00-{trace_id:032x}-{parent_id:016x}-{flags:02x}").ok()?;
        HeaderValue::try_from(text).ok()
    }

    /// Reads the trace from `headers`. An invalid one is replaced by a new trace, and its `tracestate` is removed.
    pub fn take(headers: &mut HeaderMap, random: &Random) -> Self {
        if let Some(given) = headers
            .get(TRACEPARENT)
            .and_then(|value| Self::parse(value.as_bytes()))
        {
            return given;
        }
        headers.remove(TRACESTATE);
        let started = Self::begin(random);
        match started.header() {
            Some(value) => headers.insert(TRACEPARENT, value),
            None => headers.remove(TRACEPARENT),
        };
        started
    }
}

fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0_u128, |number, byte| {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(digit))
    })
}

/// A fast pseudo-random generator for identifiers and load balancing, never for keys.
#[derive(Debug)]
pub struct Random(Cell<u64>);

impl Random {
    /// Seeds the generator from the operating system.
    pub fn seeded() -> Self {
        let mut seed = [0_u8; 8];
        // Without entropy the address of a local variable is the seed: identifiers may repeat, and nothing else depends
        // on them.
        if aws_lc_rs::rand::fill(&mut seed).is_err() {
            seed = (std::ptr::from_ref(&seed).addr() as u64).to_ne_bytes();
        }
        Self(Cell::new(u64::from_ne_bytes(seed)))
    }

    /// The next number (splitmix64); never zero.
    pub fn next(&self) -> u64 {
        let state = self.0.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0.set(state);
        let mut mixed = state;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_header_round_trips() {
        let context = TraceContext::parse(VALID.as_bytes()).unwrap();
        assert!(context.sampled());
        assert_eq!(context.header().unwrap(), VALID);
    }

    #[test]
    fn the_version_00_fields_of_a_later_version_are_read() {
        assert!(
            TraceContext::parse(format!("01{}-more", VALID.strip_prefix("00").unwrap()).as_bytes())
                .is_some()
        );
        assert!(TraceContext::parse(format!("{VALID}-more").as_bytes()).is_none());
    }

    #[test]
    fn malformed_headers_are_rejected() {
        for text in [
            "",
            "00",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c_b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0",
        ] {
            assert_eq!(TraceContext::parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn an_invalid_trace_is_replaced_and_its_state_removed() {
        let mut headers = HeaderMap::new();
        headers.insert(TRACEPARENT, HeaderValue::from_static("nonsense"));
        headers.insert(TRACESTATE, HeaderValue::from_static("vendor=1"));
        let started = TraceContext::take(&mut headers, &Random::seeded());
        assert_eq!(headers.get(TRACEPARENT), started.header().as_ref());
        assert!(!headers.contains_key(TRACESTATE));
    }
}
