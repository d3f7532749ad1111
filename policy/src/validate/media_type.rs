//! Media types (RFC 9110 §8.3.1).

/// `application/json` and `application/*+json` (RFC 6839 §3.1), in UTF-8 if a charset is given.
pub(crate) fn is_json(content_type: &str) -> bool {
    let essence = essence(content_type);
    let json = essence == "application/json"
        || (essence.starts_with("application/") && essence.ends_with("+json"));
    let utf8 = content_type.split(';').skip(1).all(|parameter| {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        !name.trim().eq_ignore_ascii_case("charset")
            || value.trim().trim_matches('"').eq_ignore_ascii_case("utf-8")
    });
    json && utf8
}

/// The media type without its parameters, lower case (RFC 9110 §8.3.1).
pub(crate) fn essence(content_type: &str) -> String {
    content_type
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase()
}
