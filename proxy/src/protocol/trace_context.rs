//! W3C Trace Context, level 1: read, passed on, made where there is none.

use std::{cell::Cell, fmt::Write as _};

use http::{HeaderMap, HeaderName, HeaderValue};

/// The header that carries the trace.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// What vendors add to it; passed on as it is, and only beside a valid `traceparent`.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Which trace a request belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    /// Never zero.
    pub trace_id: u128,
    /// The span of whoever sent the request; never zero.
    pub parent_id: u64,
    /// Bit 0: sampled.
    pub flags: u8,
}

impl TraceContext {
    /// Reads a `traceparent` (W3C Trace Context §3.2). A later version is read as far as this one goes.
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

    /// A trace that begins here, not sampled.
    pub fn begin(random: &Random) -> Self {
        Self {
            trace_id: u128::from(random.next()) << 64 | u128::from(random.next()),
            parent_id: random.next(),
            flags: 0,
        }
    }

    /// The same trace with our own span as parent of what comes next.
    #[must_use]
    pub fn child(self, span_id: u64) -> Self {
        Self {
            parent_id: span_id,
            ..self
        }
    }

    /// Whether whoever began the trace records it.
    pub fn sampled(self) -> bool {
        self.flags & 1 == 1
    }

    /// As a header.
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

    /// Takes the trace of `headers`; one that is not valid is removed with its `tracestate`, and a new one begun.
    pub fn take(headers: &mut HeaderMap, random: &Random) -> Self {
        if let Some(given) = headers
            .get(TRACEPARENT)
            .and_then(|value| Self::parse(value.as_bytes()))
        {
            return given;
        }
        headers.remove(TRACESTATE);
        let begun = Self::begin(random);
        match begun.header() {
            Some(value) => headers.insert(TRACEPARENT, value),
            None => headers.remove(TRACEPARENT),
        };
        begun
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

/// Numbers that are hard to meet twice; for identifiers and for spreading load, never for keys.
#[derive(Debug)]
pub struct Random(Cell<u64>);

impl Random {
    /// Begins at a place that the operating system chose.
    pub fn seeded() -> Self {
        let mut seed = [0_u8; 8];
        // Without entropy the address of a local stands in: identifiers may repeat, nothing else depends on them.
        if aws_lc_rs::rand::fill(&mut seed).is_err() {
            seed = (std::ptr::from_ref(&seed).addr() as u64).to_ne_bytes();
        }
        Self(Cell::new(u64::from_ne_bytes(seed)))
    }

    /// The next one (splitmix64); never zero.
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

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_header_reads_as_it_was_written() {
        let context = TraceContext::parse(GOOD.as_bytes()).unwrap();
        assert!(context.sampled());
        assert_eq!(context.header().unwrap(), GOOD);
    }

    #[test]
    fn a_later_version_is_read_as_far_as_this_one_goes() {
        assert!(
            TraceContext::parse(format!("01{}-more", GOOD.strip_prefix("00").unwrap()).as_bytes())
                .is_some()
        );
        assert!(TraceContext::parse(format!("{GOOD}-more").as_bytes()).is_none());
    }

    #[test]
    fn what_is_not_a_trace_is_none() {
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
    fn a_broken_trace_is_replaced_and_its_state_dropped() {
        let mut headers = HeaderMap::new();
        headers.insert(TRACEPARENT, HeaderValue::from_static("nonsense"));
        headers.insert(TRACESTATE, HeaderValue::from_static("vendor=1"));
        let begun = TraceContext::take(&mut headers, &Random::seeded());
        assert_eq!(headers.get(TRACEPARENT), begun.header().as_ref());
        assert!(!headers.contains_key(TRACESTATE));
    }
}
