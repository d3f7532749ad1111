//! Parses and normalises a request's head once, for policies and for the upstream.

use http::{HeaderMap, Method, Uri, Version, header, request::Parts, uri};
use hyper::ext::Protocol;

use super::{denial::Denial, headers, http1};

/// The facts of a parsed head.
#[derive(Debug, Clone)]
pub(crate) struct ParsedHead {
    /// The one authority, in lower case, as `orders.shop:80`.
    pub(crate) authority: uri::Authority,
    /// Total size of all header names and values, in bytes.
    pub(crate) header_bytes: u64,
    /// Length of path and query as received, in bytes.
    pub(crate) uri_bytes: u64,
    /// Whether the sender waits for `100 Continue` before it sends the body.
    pub(crate) expect_continue: bool,
    /// Whether it requests a WebSocket.
    pub(crate) websocket: bool,
    /// How many proxies of Merlon the request has passed, without this one.
    pub(crate) hops: u8,
}

/// A request that has passed more proxies than this runs in a circle.
pub(crate) const MAX_HOPS: u8 = 32;

/// Parses a head, and refuses it when it is ambiguous. Afterwards `head` holds what policies read and the upstream
/// gets: the normalised path, no authority, no hop-by-hop headers and no headers that only Merlon may set.
///
/// # Errors
/// The first ambiguity or violation.
pub(crate) fn read(head: &mut Parts) -> Result<ParsedHead, Denial> {
    let websocket = method(head)?;
    let header_bytes = fields(&head.headers, head.version)?;
    let authority = authority(head)?;
    let hops = headers::hops(&head.headers);
    if hops >= MAX_HOPS {
        return Err(Denial::TooManyHops);
    }
    let mut expect_continue = false;
    if let Some(expect) = head.headers.get(header::EXPECT) {
        if !expect.as_bytes().eq_ignore_ascii_case(b"100-continue") {
            return Err(Denial::Expectation);
        }
        // `Expect` is per connection: hyper sends 100 to the caller when the body is first polled.
        head.headers.remove(header::EXPECT);
        expect_continue = head.version == Version::HTTP_11;
    }
    headers::strip_hop_by_hop(&mut head.headers)?;
    let uri_bytes = head
        .uri
        .path_and_query()
        .map_or(0, |both| both.as_str().len());
    if uri_bytes > http1::MAX_TARGET {
        return Err(Denial::TargetTooLong);
    }
    path(head)?;
    Ok(ParsedHead {
        authority,
        header_bytes,
        uri_bytes: uri_bytes as u64,
        expect_continue,
        websocket,
        hops,
    })
}

fn method(head: &Parts) -> Result<bool, Denial> {
    if head.method == Method::TRACE {
        return Err(Denial::Method);
    }
    if head.method == Method::CONNECT {
        // RFC 8441 §4: CONNECT with `:protocol` is a request for a path, not for a tunnel.
        return match head.extensions.get::<Protocol>() {
            Some(protocol) if protocol.as_str() == "websocket" => Ok(true),
            _ => Err(Denial::Method),
        };
    }
    Ok(head.version == Version::HTTP_11
        && head.method == Method::GET
        && head
            .headers
            .get(header::UPGRADE)
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
        && head
            .headers
            .get_all(header::CONNECTION)
            .iter()
            .any(|value| {
                let mut options = value.as_bytes().split(|byte| *byte == b',');
                options.any(|option| option.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
            }))
}

/// Checks the limits, and for HTTP/2 what the guard checks for HTTP/1 (HTTP/2 names are lower-case tokens already).
fn fields(map: &HeaderMap, version: Version) -> Result<u64, Denial> {
    let mut bytes = 0;
    for (name, value) in map {
        if name.as_str().as_bytes().contains(&b'_') {
            return Err(Denial::Header("a header name contains `_`"));
        }
        bytes += name.as_str().len() + value.len() + 4;
    }
    if bytes > http1::MAX_HEAD || map.len() > http1::MAX_FIELDS {
        return Err(Denial::HeadTooLarge);
    }
    if version == Version::HTTP_2 {
        const ONCE: [header::HeaderName; 5] = [
            header::AUTHORIZATION,
            header::CONTENT_TYPE,
            header::CONTENT_LENGTH,
            crate::protocol::trace_context::TRACEPARENT,
            DPOP,
        ];
        // If there are as many names as fields, none is repeated.
        if map.len() != map.keys_len()
            && ONCE
                .iter()
                .any(|name| map.get_all(name).iter().nth(1).is_some())
        {
            return Err(Denial::Header("a header that must be unique is repeated"));
        }
    }
    Ok(bytes as u64)
}

const DPOP: header::HeaderName = header::HeaderName::from_static("dpop");

/// Requires exactly one authority: `:authority`, absolute-form and `Host` must agree, without user information (RFC
/// 9110 §4.2.4).
fn authority(head: &mut Parts) -> Result<uri::Authority, Denial> {
    let mut hosts = head.headers.get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => Some(
            uri::Authority::try_from(host.as_bytes())
                .map_err(|_| Denial::Authority("the host is malformed"))?,
        ),
        (None, _) => None,
        (Some(_), Some(_)) => return Err(Denial::Authority("there must be exactly one host")),
    };
    let authority = match (head.uri.authority(), host) {
        (Some(authority), Some(host))
            if !authority.as_str().eq_ignore_ascii_case(host.as_str()) =>
        {
            return Err(Denial::Authority(
                "`Host` and the request target name different hosts",
            ));
        }
        (Some(authority), _) => authority.clone(),
        (None, Some(host)) => host,
        (None, None) => return Err(Denial::Authority("there must be exactly one host")),
    };
    if authority.as_str().contains('@') || authority.host().is_empty() || has_bad_port(&authority) {
        return Err(Denial::Authority("the host is malformed"));
    }
    head.headers.remove(header::HOST);
    if authority
        .as_str()
        .bytes()
        .any(|byte| byte.is_ascii_uppercase())
    {
        return uri::Authority::try_from(authority.as_str().to_ascii_lowercase())
            .map_err(|_| Denial::Authority("the host is malformed"));
    }
    Ok(authority)
}

fn has_bad_port(authority: &uri::Authority) -> bool {
    let after = authority
        .as_str()
        .get(authority.host().len()..)
        .unwrap_or_default();
    match after.strip_prefix(':') {
        Some(port) => crate::protocol::peer_header::parse_port(port).is_none(),
        None => !after.is_empty(),
    }
}

/// Reduces the target in `head` to the normalised path with its query.
fn path(head: &mut Parts) -> Result<(), Denial> {
    let uri = std::mem::take(&mut head.uri);
    let whole = uri.path_and_query().map_or("", uri::PathAndQuery::as_str);
    if whole == "*" || uri.path() == "*" {
        if head.method != Method::OPTIONS {
            return Err(Denial::NoRoute(
                "the request target `*` is valid only for OPTIONS".into(),
            ));
        }
        head.uri = Uri::from_static("*");
        return Ok(());
    }
    let normal = merlon_policy::path::normalize(uri.path())?;
    let rewritten = if *normal == *uri.path() {
        uri.path_and_query().cloned()
    } else {
        let text = match uri.query() {
            Some(query) => format!("{normal}?{query}"),
            None => normal.into_owned(),
        };
        uri::PathAndQuery::try_from(text).ok()
    };
    // A normalised path that is not a valid URI must not be forwarded in its original form.
    let both = rewritten.ok_or(Denial::Path(merlon_policy::path::PathProblem::NotAbsolute))?;
    let mut parts = uri::Parts::default();
    parts.path_and_query = Some(both);
    head.uri = Uri::from_parts(parts)
        .map_err(|_| Denial::Path(merlon_policy::path::PathProblem::NotAbsolute))?;
    Ok(())
}
