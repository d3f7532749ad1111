//! Any bytes parse to a key set with at least one usable key, or are rejected with a reason.
#![no_main]

use libfuzzer_sys::fuzz_target;
use merlon_policy::authn::jwks::KeySet;

fuzz_target!(|bytes: &[u8]| match KeySet::parse(bytes) {
    Ok(keys) => assert!(!keys.is_empty()),
    Err(problem) => assert!(!problem.to_string().is_empty()),
});
