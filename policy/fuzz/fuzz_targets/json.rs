//! What the strict reader accepts, the usual one reads alike.
#![no_main]

use libfuzzer_sys::fuzz_target;
use merlon_policy::validate::json;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(value) = json::parse(bytes) {
        assert_eq!(serde_json::from_slice::<serde_json::Value>(bytes).ok(), Some(value));
    }
});
