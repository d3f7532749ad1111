//! Whether texts are what they are meant to be, where their type is text.

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

/// Why a method is not one, if it is not. Methods are exact: `get` is not `GET` (RFC 9110 §9.1).
pub(super) fn method_problem(method: &str) -> Option<(String, Option<String>)> {
    if !is_token(method) {
        return Some((format!("`{method}` is not a method"), None));
    }
    let upper = method.to_ascii_uppercase();
    (upper != method).then(|| {
        let message = format!("`{method}` is not in upper case, and methods are compared exactly");
        (message, Some(format!("write `{upper}`")))
    })
}

/// A host name, or `*.` and one.
pub(super) fn is_hostname(text: &str) -> bool {
    let name = text.strip_prefix("*.").unwrap_or(text);
    name.parse::<ResourceName>().is_ok() && name.parse::<IpAddr>().is_err()
}

/// Why a URL may not be asked for keys or signatures, if it may not: plain `http` only within the machine.
pub(super) fn url_problem(url: &Url) -> Option<&'static str> {
    match url.scheme() {
        "https" if url.host().is_some() => {}
        "http" if is_loopback(url) => {}
        "http" => return Some("plain `http` is accepted only to a loopback address"),
        _ => return Some("it must begin with `https://`"),
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Some("it must not hold a user or a password");
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
    fn a_star_stands_only_for_the_first_labels_of_a_host() {
        assert!(is_hostname("shop.example.org"));
        assert!(is_hostname("*.example.org"));
        assert!(!is_hostname("*"));
        assert!(!is_hostname("a.*.org"));
        assert!(!is_hostname("127.0.0.1"));
        assert!(!is_hostname("Shop.example.org"));
    }
}
