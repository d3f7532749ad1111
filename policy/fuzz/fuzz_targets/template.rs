//! Any text is a path template or is rejected with a reason.
#![no_main]

use libfuzzer_sys::fuzz_target;
use merlon_policy::validate::check_template;

fuzz_target!(|text: &str| {
    if let Err(problem) = check_template(text) {
        assert!(!problem.is_empty());
    }
});
