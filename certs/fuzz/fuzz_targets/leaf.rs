//! Any bytes are a leaf whose name has exactly one spelling, or are rejected with an error message.
#![no_main]

use libfuzzer_sys::fuzz_target;
use merlon_certs::LeafFacts;
use merlon_config::name::SpiffeId;

fuzz_target!(|der: &[u8]| match LeafFacts::parse(der) {
    Ok(facts) => assert_eq!(facts.id.to_string().parse::<SpiffeId>(), Ok(facts.id)),
    Err(error) => assert!(!error.to_string().is_empty()),
});
