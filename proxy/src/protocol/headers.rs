//! Headers that are removed from messages, and headers that only Merlon sets.

use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::{denial::Denial, peer_header, reserved::is_reserved};

/// The SPIFFE ID of the peer, authenticated by TLS.
pub const CALLER: HeaderName = HeaderName::from_static("merlon-caller");
/// `issuer#subject` of the verified token.
pub const USER: HeaderName = HeaderName::from_static("merlon-user");
/// How many proxies of Merlon a request has passed. A program that copies it to the requests that it makes, as it does
/// with the headers of a trace, lets the next proxy find loops through it.
pub const HOPS: HeaderName = HeaderName::from_static("merlon-hops");

/// The highest number in the fields [`HOPS`]. What is no number counts as 0: only a client sends it.
pub(crate) fn hops(headers: &HeaderMap) -> u8 {
    let numbers = headers.get_all(HOPS).iter().filter_map(|value| {
        let text = value.to_str().ok()?;
        text.trim().parse().ok()
    });
    numbers.max().unwrap_or_default()
}

/// Removes every header that only Merlon may set.
pub(crate) fn strip_reserved(headers: &mut HeaderMap) {
    let forged: Vec<HeaderName> = headers
        .keys()
        .filter(|name| is_reserved(name.as_str().as_bytes()))
        .cloned()
        .collect();
    for name in forged {
        headers.remove(name);
    }
}

/// The headers in which a gateway describes the original client.
pub(crate) const FORWARDED: [HeaderName; 3] = [
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-proto"),
];

/// As [`strip_reserved`], for requests from a gateway: the `x-forwarded-*` headers that it sets stay.
pub(crate) fn strip_reserved_except_forwarded(headers: &mut HeaderMap) {
    let word = FORWARDED.map(|name| (headers.get(&name).cloned(), name));
    strip_reserved(headers);
    for (value, name) in word {
        if let Some(value) = value {
            headers.insert(name, value);
        }
    }
}

/// Removes hop-by-hop headers (RFC 9110 §7.6.1): the standard ones and those that `Connection` nominates.
///
/// # Errors
/// `Connection` nominates a protected header: removing it would be an attack.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) -> Result<(), Denial> {
    if headers.contains_key(header::CONNECTION) {
        strip_nominated(headers)?;
        headers.remove(header::CONNECTION);
    }
    for name in [
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        KEEP_ALIVE,
        HTTP2_SETTINGS,
    ] {
        headers.remove(name);
    }
    if headers
        .get(header::TE)
        .is_some_and(|value| !value.as_bytes().eq_ignore_ascii_case(b"trailers"))
    {
        headers.remove(header::TE);
    }
    Ok(())
}

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

fn strip_nominated(headers: &mut HeaderMap) -> Result<(), Denial> {
    let mut nominated = Vec::new();
    for value in headers.get_all(header::CONNECTION) {
        for option in value
            .as_bytes()
            .split(|byte| *byte == b',')
            .map(<[u8]>::trim_ascii)
        {
            match option {
                b"" => {}
                _ if option.eq_ignore_ascii_case(b"close")
                    || option.eq_ignore_ascii_case(b"keep-alive")
                    || option.eq_ignore_ascii_case(b"upgrade")
                    || option.eq_ignore_ascii_case(b"te")
                    || option.eq_ignore_ascii_case(b"http2-settings") => {}
                _ if is_protected(option) => {
                    return Err(Denial::Header(
                        "`Connection` names a header that is not hop-by-hop",
                    ));
                }
                _ => match HeaderName::from_bytes(option) {
                    Ok(name) => nominated.push(name),
                    Err(_) => {
                        return Err(Denial::Header(
                            "`Connection` contains an invalid header name",
                        ));
                    }
                },
            }
        }
    }
    for name in nominated {
        headers.remove(name);
    }
    Ok(())
}

fn is_protected(name: &[u8]) -> bool {
    const END_TO_END: [&[u8]; 14] = [
        b"authorization",
        b"cookie",
        b"host",
        b"content-length",
        b"content-type",
        b"content-encoding",
        b"expect",
        b"dpop",
        b"traceparent",
        b"tracestate",
        b"origin",
        b"transfer-encoding",
        b"cache-control",
        b"date",
    ];
    is_reserved(name)
        || END_TO_END
            .iter()
            .any(|protected| name.eq_ignore_ascii_case(protected))
}

/// Removes hop-by-hop headers from a response that is forwarded.
pub(crate) fn strip_response(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) && strip_nominated(headers).is_err() {
        // When an upstream nominates a protected name, only the nomination is removed.
        headers.remove(header::CONNECTION);
    }
    for name in [
        header::CONNECTION,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        // Only proxies set it. A program's response proves that the request was served.
        peer_header::UNSERVED,
    ] {
        headers.remove(name);
    }
}

const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// HTTP/2 splits cookies for compression; HTTP/1.1 requires one field (RFC 9113 §8.2.3).
pub(crate) fn join_cookies(headers: &mut HeaderMap) {
    let mut all = headers.get_all(header::COOKIE).iter();
    if all.next().is_none() || all.next().is_none() {
        return;
    }
    let crumbs: Vec<&[u8]> = headers
        .get_all(header::COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if let Ok(value) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        headers.insert(header::COOKIE, value);
    }
}

/// A subject can be any text (RFC 7519 §4.1.2): bytes that are not allowed in a header are percent-encoded.
pub(crate) fn printable(text: &str) -> HeaderValue {
    use std::fmt::Write as _;
    if text
        .bytes()
        .all(|byte| matches!(byte, 0x21..=0x7e) && byte != b'%')
        && let Ok(value) = HeaderValue::from_str(text)
    {
        return value;
    }
    let mut encoded = String::with_capacity(text.len() * 3);
    for byte in text.bytes() {
        if matches!(byte, 0x21..=0x7e) && byte != b'%' {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    HeaderValue::try_from(encoded).unwrap_or(HeaderValue::from_static("%"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)))
            .collect()
    }

    #[test]
    fn nominated_headers_are_removed_and_protected_ones_cannot_be_nominated() {
        let mut headers = map(&[
            ("connection", "keep-alive, x-private"),
            ("x-private", "1"),
            ("accept", "*/*"),
        ]);
        strip_hop_by_hop(&mut headers).unwrap();
        assert_eq!(headers, map(&[("accept", "*/*")]));
        for option in [
            "authorization",
            "X-Forwarded-For",
            "merlon-caller",
            "Cookie",
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONNECTION, HeaderValue::from_static(option));
            assert!(
                matches!(strip_hop_by_hop(&mut headers), Err(Denial::Header(_))),
                "{option}"
            );
        }
    }

    #[test]
    fn the_highest_number_of_hops_counts() {
        assert_eq!(hops(&HeaderMap::new()), 0);
        for (values, expected) in [
            (&["3"][..], 3),
            (&["3", "7", "5"], 7),
            (&["-1", "x", "", "1, 2"], 0),
            (&["256", "99999999999999999999"], 0),
            (&["255"], 255),
        ] {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(HOPS, HeaderValue::from_static(value));
            }
            assert_eq!(hops(&headers), expected, "{values:?}");
        }
    }

    #[test]
    fn split_cookies_are_joined() {
        let mut headers = HeaderMap::new();
        headers.append(header::COOKIE, HeaderValue::from_static("a=1"));
        headers.append(header::COOKIE, HeaderValue::from_static("b=2"));
        join_cookies(&mut headers);
        assert_eq!(
            headers.get_all(header::COOKIE).iter().collect::<Vec<_>>(),
            ["a=1; b=2"]
        );
    }
}
