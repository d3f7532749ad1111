//! What clients write into logs.

use merlon_proxy::fuzzing::access_log_line;
use serde_json::Value;

use crate::input::Input;

/// A line of the access log is one line and one JSON object, without control characters, with the values as they are.
pub(crate) fn access_log(bytes: &[u8]) {
    const NAMES: [&str; 8] = [
        "src", "dst", "method", "host", "path", "route", "user", "cause",
    ];
    let mut input = Input::new(bytes);
    let texts = NAMES.map(|_| input.text());
    let address = Some(([127, 0, 0, 1], 80).into());
    let block = access_log_line(texts.each_ref().map(String::as_str), address);
    let line = String::from_utf8(block).expect("UTF-8");
    let line = line.strip_suffix('\n').expect("the end of a line");
    assert!(
        !line
            .chars()
            .any(|one| one.is_control() || matches!(one, '\u{2028}'..='\u{202e}')),
        "{line:?}"
    );
    let value: Value = serde_json::from_str(line).expect("an object");
    for (name, text) in NAMES.iter().zip(&texts) {
        assert_eq!(value[name], **text, "{name}");
    }
}
