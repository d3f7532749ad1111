//! The head of a request after the guard: where it goes, and how its body is read.

use std::borrow::Cow;

use http::{HeaderMap, HeaderValue, Request, Version, header, request::Parts};
use merlon_config::name::{Namespace, ServiceName};
use merlon_policy::fuzzing::{media_type, query as parameters};
use merlon_proxy::{
    fuzzing::{
        is_encoded, is_mesh_only, join_cookies, mesh_name, printable, read_head, split_port,
    },
    protocol::http1::{MAX_FIELDS, MAX_HEAD, MAX_TARGET, find_end, parse},
};

use crate::input::Input;

/// A head that the guard passes, as HTTP/1 or with its fields as HTTP/2, names one host, which has one reading.
pub(crate) fn authority(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let http2 = input.byte() & 1 == 1;
    let Some(mut head) = parts(input.rest(), http2) else {
        return;
    };
    let received = head.clone();
    let Ok(read) = read_head(&mut head) else {
        return;
    };
    let written = |text: &str| text.eq_ignore_ascii_case(&read.authority);
    if let Some(host) = received.headers.get(header::HOST) {
        assert!(host.to_str().is_ok_and(written));
    }
    if let Some(authority) = received.uri.authority() {
        assert!(written(authority.as_str()));
    }
    assert_eq!(read.authority, read.authority.to_ascii_lowercase());
    assert!(!read.authority.contains(['@', '/', '?', '#', '\\', ' ']));
    assert!(read.uri_bytes <= MAX_TARGET as u64 && read.header_bytes <= MAX_HEAD as u64);

    // The upstream gets neither the host nor what belongs to the connection, and a normalised path.
    assert!(head.uri.authority().is_none() && head.uri.scheme().is_none());
    for name in [
        header::HOST,
        header::CONNECTION,
        header::TRANSFER_ENCODING,
        header::EXPECT,
    ] {
        assert!(!head.headers.contains_key(&name), "{name}");
    }
    let path = head.uri.path();
    assert!(path == "*" || merlon_policy::path::normalize(path).as_deref() == Ok(path));

    let (host, port) = split_port(&read.authority).expect("a checked port");
    let (own, after) = read.authority.split_at(host.len());
    assert_eq!(own, host);
    assert_eq!(after, port.map_or(String::new(), |port| format!(":{port}")));
    destination(host);
}

/// The service of a host is the one that the model names, and a service that cannot be external never is.
fn destination(host: &str) {
    let own: Namespace = "shop".parse().expect("a namespace");
    let named = mesh_name(host, &own);
    assert_eq!(named, model(host, &own), "{host}");
    let whole = host.strip_suffix('.').unwrap_or(host);
    let of_cluster = whole.ends_with(".svc") || whole.ends_with(".svc.cluster.local");
    assert_eq!(
        is_mesh_only(host),
        of_cluster || !host.contains('.'),
        "{host}"
    );
    let Some(named) = named else { return };
    for suffix in ["", ".", ".svc", ".svc.", ".svc.cluster.local"] {
        let full = format!("{}.{}{suffix}", named.name, named.namespace);
        let mut bytes = full.bytes();
        // An address, or a name in the own namespace with a part of the suffix.
        let is_other = bytes.all(|byte| byte.is_ascii_digit() || byte == b'.')
            || (named.namespace.as_str() == "svc" && suffix.len() < 2);
        if !is_other {
            assert_eq!(mesh_name(&full, &own).as_ref(), Some(&named), "{full}");
        }
    }
}

/// `name` or `name.namespace`, then nothing or `.svc` or `.svc.cluster.local`, then at most one dot.
fn model(host: &str, own: &Namespace) -> Option<ServiceName> {
    let mut labels: Vec<&str> = host.split('.').collect();
    if labels.len() > 1 && labels.last() == Some(&"") {
        labels.pop();
    }
    for suffix in [&["svc", "cluster", "local"][..], &["svc"]] {
        if labels.len() > suffix.len() && labels.ends_with(suffix) {
            labels.truncate(labels.len() - suffix.len());
            break;
        }
    }
    match labels.as_slice() {
        [name] => Some(ServiceName {
            namespace: own.clone(),
            name: name.parse().ok()?,
        }),
        [name, namespace] => {
            let digits = |label: &&str| label.bytes().all(|byte| byte.is_ascii_digit());
            if labels.iter().all(digits) {
                return None;
            }
            Some(ServiceName {
                namespace: namespace.parse().ok()?,
                name: name.parse().ok()?,
            })
        }
        _ => None,
    }
}

/// The head as hyper builds it. For HTTP/2 the host is in the target, and fields of a connection do not exist.
fn parts(bytes: &[u8], http2: bool) -> Option<Parts> {
    let end = find_end(bytes, 0).ok()??;
    parse(&bytes[..end]).ok()?;
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut read = httparse::Request::new(&mut fields);
    read.parse(bytes).ok()?;
    let mut request = Request::builder()
        .method(read.method?)
        .uri(read.path?)
        .version(if http2 {
            Version::HTTP_2
        } else {
            Version::HTTP_11
        });
    for field in read.headers.iter() {
        request = request.header(field.name, field.value);
    }
    let (mut head, ()) = request.body(()).ok()?.into_parts();
    if http2 && head.uri.authority().is_none() && head.uri.path() != "*" {
        let host = head.headers.remove(header::HOST)?;
        let mut uri = head.uri.into_parts();
        uri.scheme = Some(http::uri::Scheme::HTTP);
        uri.authority = Some(host.as_bytes().try_into().ok()?);
        head.uri = uri.try_into().ok()?;
    }
    Some(head)
}

/// A body is read as JSON only if its media type says so without doubt, and an encoded body is always recognised.
pub(crate) fn content_headers(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let content_type = input.text();
    let (is_json, essence) = media_type(&content_type);
    let trimmed = content_type.split(';').next().unwrap_or_default().trim();
    assert!(essence.eq_ignore_ascii_case(trimmed));
    if is_json {
        assert!(essence.starts_with("application/") && essence.ends_with("json"));
        let lower = content_type.to_ascii_lowercase();
        let mut parameters = lower.split(';').skip(1).map(|one| one.split_once('='));
        let other =
            |(name, value): (&str, &str)| name.trim() == "charset" && !value.contains("utf-8");
        assert!(!parameters.any(|one| one.is_some_and(other)));
    }

    let mut headers = HeaderMap::new();
    let mut cookies = Vec::new();
    while !input.is_empty() {
        let cookie = input.byte() & 1 == 1;
        let Ok(value) = HeaderValue::from_bytes(input.part()) else {
            continue;
        };
        if cookie {
            cookies.push(value.as_bytes().to_owned());
            headers.append(header::COOKIE, value);
        } else {
            headers.append(header::CONTENT_ENCODING, value);
        }
    }
    let mut codings = headers.get_all(header::CONTENT_ENCODING).iter();
    let plain = |value: &HeaderValue| {
        let text = String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase();
        let mut codings = text
            .split(',')
            .map(|coding| coding.trim_matches([' ', '\t']));
        codings.all(|coding| matches!(coding, "" | "identity"))
    };
    assert_eq!(is_encoded(&headers), !codings.all(plain));

    join_cookies(&mut headers);
    let joined = headers
        .get_all(header::COOKIE)
        .iter()
        .map(HeaderValue::as_bytes);
    let joined: Vec<&[u8]> = joined.collect();
    assert!(joined.len() <= 1);
    assert_eq!(joined.concat(), cookies.join(&b"; "[..]));

    let shown = printable(&content_type);
    let shown = shown.to_str().expect("visible ASCII");
    assert_eq!(
        percent_decoded(shown),
        Some(Cow::Borrowed(content_type.as_bytes()))
    );
}

/// The value of a query parameter that policies read is the only one that a form parser reads; otherwise the query is
/// refused.
pub(crate) fn query(bytes: &[u8]) {
    const NAMES: [&str; 3] = ["user", "id", "a b"];
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let Some(read) = parameters(&NAMES, text) else {
        return;
    };
    for (name, value) in NAMES.iter().zip(read) {
        let pairs = text.split('&').filter_map(|pair| {
            let (own, value) = pair.split_once('=').unwrap_or((pair, ""));
            let own = percent_decoded(&own.replace('+', " "))?.into_owned();
            (own == name.as_bytes()).then(|| value.to_owned())
        });
        let all: Vec<String> = pairs.collect();
        match (value, all.as_slice()) {
            (None, []) => {}
            (Some(value), [one]) => {
                let one = one.replace('+', " ");
                assert_eq!(
                    percent_decoded(&one).as_deref(),
                    Some(value.as_bytes()),
                    "{text}"
                );
            }
            (value, all) => panic!("{value:?} instead of {all:?} of `{name}` in {text}"),
        }
    }
}

/// Decodes `%` and two hexadecimal digits; `None` for a `%` without them.
fn percent_decoded(text: &str) -> Option<Cow<'_, [u8]>> {
    if !text.contains('%') {
        return Some(Cow::Borrowed(text.as_bytes()));
    }
    let (first, rest) = text.split_once('%')?;
    let mut bytes = first.as_bytes().to_vec();
    for part in rest.split('%') {
        let digits = part
            .get(..2)
            .filter(|two| two.bytes().all(|b| b.is_ascii_hexdigit()))?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    Some(Cow::Owned(bytes))
}
