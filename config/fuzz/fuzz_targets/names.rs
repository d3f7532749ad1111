//! A valid name prints as it was written: there is only one way to write an identity.
#![no_main]

use std::{fmt::Display, str::FromStr};

use libfuzzer_sys::fuzz_target;
use merlon_config::{
    name::{Namespace, ResourceName, ServiceName, SpiffeId, TrustDomain, WorkloadId},
    snapshot::PolicyName,
};

fn prints_as_written<T: FromStr + Display>(text: &str) {
    if let Ok(name) = text.parse::<T>() {
        assert_eq!(name.to_string(), text);
    }
}

fuzz_target!(|text: &str| {
    prints_as_written::<TrustDomain>(text);
    prints_as_written::<Namespace>(text);
    prints_as_written::<ResourceName>(text);
    prints_as_written::<WorkloadId>(text);
    prints_as_written::<ServiceName>(text);
    prints_as_written::<SpiffeId>(text);
    let _ = text.parse::<PolicyName>();
});
