//! Checks of string fields: tokens, methods, host names and URLs.

use std::net::IpAddr;

use url::Url;

use crate::{loopback::is_loopback, name::ResourceName};

/// A `token` of RFC 9110 §5.6.2: methods, header names, halves of media types.
pub(super) fn is_token(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

/// Why a string is not a valid method, with a hint. Methods are case-sensitive: `get` is not `GET` (RFC 9110 §9.1).
pub(super) fn method_problem(method: &str) -> Option<(String, Option<String>)> {
    if !is_token(method) {
        return Some((format!("`{method}` is not a method"), None));
    }
    let upper = method.to_ascii_uppercase();
    (upper != method).then(|| {
        let message = format!("`{method}` is not in upper case; methods are case-sensitive");
        (message, Some(format!("write `{upper}`")))
    })
}

/// A host name, with an optional leading `*.`.
pub(super) fn is_hostname(text: &str) -> bool {
    let name = text.strip_prefix("*.").unwrap_or(text);
    name.parse::<ResourceName>().is_ok() && name.parse::<IpAddr>().is_err()
}

/// Why a URL is not safe to fetch keys or signatures from: plain `http` is allowed only within the machine.
pub(super) fn url_problem(url: &Url) -> Option<&'static str> {
    match url.scheme() {
        "https" if url.host().is_some() => {}
        "http" if is_loopback(url) => {}
        "http" => return Some("plain `http` is allowed only for a loopback address"),
        _ => return Some("it must begin with `https://`"),
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Some("it must not contain a user or a password");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_stays_within_the_machine() {
        let problem = |url: &str| url_problem(&url.parse().unwrap());
        assert_eq!(problem("https://login.example.org/realms/a"), None);
        assert_eq!(problem("http://127.0.0.1:8080"), None);
        assert_eq!(problem("http://[::1]:8080"), None);
        assert_eq!(problem("http://localhost:8080"), None);
        assert!(problem("http://login.example.org").is_some());
        assert!(problem("http://127.0.0.1.example.org").is_some());
        assert!(problem("ftp://127.0.0.1").is_some());
        assert!(problem("https://me:secret@login.example.org").is_some());
    }

    #[test]
    fn a_star_is_allowed_only_as_the_first_label_of_a_host() {
        assert!(is_hostname("shop.example.org"));
        assert!(is_hostname("*.example.org"));
        assert!(!is_hostname("*"));
        assert!(!is_hostname("a.*.org"));
        assert!(!is_hostname("127.0.0.1"));
        assert!(!is_hostname("Shop.example.org"));
    }
}
