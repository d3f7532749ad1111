//! A printed size or duration parses to the same value.
#![no_main]

use libfuzzer_sys::fuzz_target;
use merlon_config::unit::{Size, HumanDuration};

fuzz_target!(|text: &str| {
    if let Ok(size) = text.parse::<Size>() {
        assert_eq!(size.to_string().parse(), Ok(size));
    }
    // Durations are printed in milliseconds, so finer parts are lost.
    if let Ok(HumanDuration(span)) = text.parse::<HumanDuration>()
        && span.subsec_nanos() % 1_000_000 == 0
    {
        assert_eq!(HumanDuration(span).to_string().parse(), Ok(HumanDuration(span)));
    }
});
