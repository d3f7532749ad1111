//! Any path is normalised to a stable result, or is rejected.
#![no_main]

use libfuzzer_sys::fuzz_target;
use merlon_policy::path::normalize;

fuzz_target!(|path: &str| {
    if let Ok(normal) = normalize(path) {
        assert_eq!(normalize(&normal).as_deref(), Ok(&*normal));
        assert!(normal.starts_with('/'));
        assert!(!normal.contains("//") && !normal.contains(';') && !normal.contains("/../"));
    }
});
