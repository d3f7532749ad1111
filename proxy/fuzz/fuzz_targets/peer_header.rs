//! Every valid claim round-trips: each has exactly one form. The preamble of a tunnel is this text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use merlon_proxy::protocol::peer_header::Claim;

fuzz_target!(|bytes: &[u8]| {
    if let Some(claim) = Claim::parse(bytes) {
        assert_eq!(claim.to_string().as_bytes(), bytes);
    }
});
