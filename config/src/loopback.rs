//! Recognizes URLs that do not leave the machine. Only these may use plain `http` for confidential data.

use url::{Host, Url};

/// Whether a URL's host is a loopback address, or `localhost`, which is one by definition (RFC 6761 §6.3).
///
/// ```
/// # use merlon_config::loopback::is_loopback;
/// # let url = |text: &str| text.parse().unwrap();
/// assert!(is_loopback(&url("http://[::1]:8200")));
/// assert!(!is_loopback(&url("http://localhost.example.org")));
/// ```
pub fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}
