//! JSON that the strict parser accepts has the same value in serde_json.
#![no_main]

use libfuzzer_sys::fuzz_target;
use merlon_policy::validate::json;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(value) = json::parse(bytes) {
        assert_eq!(serde_json::from_slice::<serde_json::Value>(bytes).ok(), Some(value));
    }
});
