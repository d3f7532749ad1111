//! httparse reads every valid head the same way: the same fields, the same end, one framing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use merlon_proxy::protocol::http1::{Framing, find_end, parse};

fuzz_target!(|bytes: &[u8]| {
    let Ok(Some(end)) = find_end(bytes, 0) else { return };
    let head = bytes.get(..end).expect("the end is within");
    let Ok(read) = parse(head) else { return };
    let mut fields = [httparse::EMPTY_HEADER; 128];
    let mut request = httparse::Request::new(&mut fields);
    assert_eq!(request.parse(bytes), Ok(httparse::Status::Complete(end)));
    let of = |name: &str| request.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name)).count();
    assert_eq!(of("host"), 1);
    assert!(of("content-length") + of("transfer-encoding") <= 1);
    assert_eq!(read.framing == Framing::Chunked, of("transfer-encoding") == 1);
});
