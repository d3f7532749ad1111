//! Names and units.

use std::{fmt::Display, str::FromStr};

use merlon_config::{
    name::{Namespace, ResourceName, ServiceName, SpiffeId, TrustDomain, WorkloadId},
    snapshot::PolicyName,
    unit::{HumanDuration, Size},
};

use crate::input::text;

/// A valid name prints as it was written: there is only one way to write an identity.
pub(crate) fn names(bytes: &[u8]) {
    fn prints_as_written<T: FromStr + Display>(text: &str) {
        if let Ok(name) = text.parse::<T>() {
            assert_eq!(name.to_string(), text);
        }
    }
    text(bytes, |text| {
        prints_as_written::<TrustDomain>(text);
        prints_as_written::<Namespace>(text);
        prints_as_written::<ResourceName>(text);
        prints_as_written::<WorkloadId>(text);
        prints_as_written::<ServiceName>(text);
        prints_as_written::<SpiffeId>(text);
        if let Ok(name) = text.parse::<PolicyName>() {
            assert_eq!(name.to_string().parse(), Ok(name));
        }
    });
}

/// A printed size or duration parses to the same value.
pub(crate) fn units(bytes: &[u8]) {
    text(bytes, |text| {
        if let Ok(size) = text.parse::<Size>() {
            assert_eq!(size.to_string().parse(), Ok(size));
        }
        // Durations are printed in milliseconds, so finer parts are lost.
        if let Ok(HumanDuration(span)) = text.parse::<HumanDuration>()
            && span.subsec_nanos() % 1_000_000 == 0
        {
            let printed = HumanDuration(span).to_string();
            assert_eq!(printed.parse(), Ok(HumanDuration(span)), "{printed}");
        }
    });
}
