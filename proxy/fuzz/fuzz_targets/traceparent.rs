//! Every valid trace context round-trips in the fields of version 00.
#![no_main]

use libfuzzer_sys::fuzz_target;
use merlon_proxy::protocol::trace_context::TraceContext;

fuzz_target!(|bytes: &[u8]| {
    if let Some(context) = TraceContext::parse(bytes) {
        let header = context.header().expect("digits and hyphens");
        assert_eq!(header.as_bytes().get(2..), bytes.get(2..55));
        assert_eq!(TraceContext::parse(header.as_bytes()), Some(context));
    }
});
