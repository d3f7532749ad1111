//! Converts a request to the HTTP version of the next connection: HTTP/2 or HTTP/1.1.

use http::{HeaderValue, Request, Uri, Version, header, uri};

use super::headers::join_cookies;

/// For an HTTP/2 connection: the authority is part of the request target.
pub(crate) fn as_h2<B>(
    mut request: Request<B>,
    authority: &uri::Authority,
    scheme: &str,
) -> Request<B> {
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.scheme = if scheme == "https" {
        Some(uri::Scheme::HTTPS)
    } else {
        Some(uri::Scheme::HTTP)
    };
    parts.authority = Some(authority.clone());
    if parts.path_and_query.is_none() {
        parts.path_and_query = Some(uri::PathAndQuery::from_static("/"));
    }
    // INVARIANT: all three parts are set, which is what `from_parts` requires.
    *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
    *request.version_mut() = Version::HTTP_2;
    request
}

/// For an HTTP/1.1 connection: the authority is in `Host`.
pub(crate) fn with_host<B>(mut request: Request<B>, authority: &uri::Authority) -> Request<B> {
    *request.version_mut() = Version::HTTP_11;
    if let Ok(host) = HeaderValue::from_str(authority.as_str()) {
        request.headers_mut().insert(header::HOST, host);
    }
    join_cookies(request.headers_mut());
    if request.headers().contains_key(header::TE) {
        // `TE: trailers` is hop-by-hop, so `Connection` must name it (RFC 9110 §10.1.4). The proxy forwards trailers.
        let te = HeaderValue::from_static("te");
        request.headers_mut().insert(header::CONNECTION, te);
    }
    request
}

/// Converts an HTTP/2 request to HTTP/1.1.
pub(crate) fn as_http1<B>(mut request: Request<B>) -> Request<B> {
    let parts = std::mem::take(request.uri_mut()).into_parts();
    if let Some(both) = parts.path_and_query {
        *request.uri_mut() = Uri::from(both);
    }
    match parts.authority {
        Some(authority) => with_host(request, &authority),
        None => request,
    }
}
