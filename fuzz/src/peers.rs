//! What another proxy sends: claims, tunnels, trace contexts.

use http::HeaderValue;
use merlon_proxy::{
    fuzzing::{self, question, split_question},
    protocol::{
        peer_header::{Claim, Proto},
        trace_context::TraceContext,
    },
};

use crate::input::ready;

/// Each claim and each question has exactly one form, and none is both.
pub(crate) fn peer_header(bytes: &[u8]) {
    let claim = Claim::parse(bytes);
    if let Some(claim) = &claim {
        assert_eq!(claim.to_string().as_bytes(), bytes);
    }
    let Ok(value) = HeaderValue::from_bytes(bytes) else {
        return assert!(claim.is_none());
    };
    if let Some((asked, length)) = split_question(&value) {
        assert!(claim.is_none(), "a question is no claim");
        let again = question(&asked, length).expect("a header");
        assert_eq!(split_question(&again), Some((asked, length)));
    }
}

/// A preamble is a length and a claim for TCP. Cut, it is none; what follows belongs to the program.
pub(crate) fn preamble(bytes: &[u8]) {
    let Some((claim, after)) = ready(fuzzing::read_claim(bytes)) else {
        return;
    };
    assert_eq!(claim.proto, Proto::Tcp);
    let preamble = fuzzing::preamble(&claim);
    assert_eq!([&preamble, after].concat(), bytes, "one form");
    for length in [0, 1, 2, preamble.len() - 1] {
        assert!(ready(fuzzing::read_claim(&preamble[..length])).is_none());
    }
}

/// Every valid trace context round-trips in the fields of version 00.
pub(crate) fn traceparent(bytes: &[u8]) {
    if let Some(context) = TraceContext::parse(bytes) {
        let header = context.header().expect("digits and hyphens");
        assert_eq!(header.as_bytes().get(2..), bytes.get(2..55));
        assert_eq!(TraceContext::parse(header.as_bytes()), Some(context));
    }
}
