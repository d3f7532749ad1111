//! Any bytes are a leaf whose name is written in exactly one way, or are refused with a reason that prints.
#![no_main]

use libfuzzer_sys::fuzz_target;
use merlon_certs::LeafFacts;
use merlon_config::name::SpiffeId;

fuzz_target!(|der: &[u8]| match LeafFacts::parse(der) {
    Ok(facts) => assert_eq!(facts.id.to_string().parse::<SpiffeId>(), Ok(facts.id)),
    Err(error) => assert!(!error.to_string().is_empty()),
});
