//! WebSockets: requested by `Upgrade` in HTTP/1.1 and by extended CONNECT in HTTP/2 (RFC 8441), and converted between
//! the two when the next connection uses the other version.

use aws_lc_rs::digest;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{
    HeaderName, HeaderValue, Method, Request, StatusCode, Version, header, request, response,
};
use hyper::{ext::Protocol, upgrade::OnUpgrade};

use super::{peer_header::Proto, trace_context::Random};

const KEY: HeaderName = header::SEC_WEBSOCKET_KEY;
const ACCEPT: HeaderName = header::SEC_WEBSOCKET_ACCEPT;

/// The downstream side of a requested upgrade.
#[derive(Debug)]
pub(crate) struct UpgradeRequest {
    pub(crate) downstream: OnUpgrade,
    /// Needed when the upstream responds over HTTP/2, which has no `Sec-WebSocket-Accept`.
    key: Option<HeaderValue>,
}

/// Takes the future downstream connection out of a request.
pub(crate) fn take(head: &mut request::Parts) -> Option<UpgradeRequest> {
    let downstream = head.extensions.remove::<OnUpgrade>()?;
    Some(UpgradeRequest {
        downstream,
        key: head.headers.get(KEY).cloned(),
    })
}

/// Converts a WebSocket request to the protocol of the next connection.
pub(crate) fn convert_request<B>(request: Request<B>, proto: Proto, random: &Random) -> Request<B> {
    let (mut head, body) = request.into_parts();
    head.extensions.remove::<Protocol>();
    if proto == Proto::Http1 {
        head.method = Method::GET;
        head.headers
            .insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        head.headers
            .insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        if !head.headers.contains_key(KEY) {
            let nonce = [random.next().to_ne_bytes(), random.next().to_ne_bytes()].concat();
            if let Ok(key) = HeaderValue::try_from(STANDARD.encode(nonce)) {
                head.headers.insert(KEY, key);
            }
        }
    } else {
        head.method = Method::CONNECT;
        head.extensions.insert(Protocol::from_static("websocket"));
    }
    Request::from_parts(head, body)
}

/// Whether the upstream accepted the upgrade.
pub(crate) fn is_accepted(status: StatusCode, proto: Proto) -> bool {
    status
        == if proto == Proto::Http1 {
            StatusCode::SWITCHING_PROTOCOLS
        } else {
            StatusCode::OK
        }
}

/// Converts a response that accepts the upgrade to the downstream's HTTP version.
pub(crate) fn convert_response(
    head: &mut response::Parts,
    version: Version,
    upgrade: &UpgradeRequest,
) {
    head.version = version;
    head.headers.remove(header::CONTENT_LENGTH);
    if version >= Version::HTTP_2 {
        head.status = StatusCode::OK;
        return;
    }
    head.status = StatusCode::SWITCHING_PROTOCOLS;
    head.headers
        .insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    head.headers
        .insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    if let Some(key) = upgrade
        .key
        .as_ref()
        .filter(|_| !head.headers.contains_key(ACCEPT))
        && let Ok(accept) = HeaderValue::try_from(accept(key))
    {
        head.headers.insert(ACCEPT, accept);
    }
}

/// RFC 6455 §4.2.2.
fn accept(key: &HeaderValue) -> String {
    const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    let digest = digest::digest(
        &digest::SHA1_FOR_LEGACY_USE_ONLY,
        &[key.as_bytes(), GUID].concat(),
    );
    STANDARD.encode(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_value_matches_the_example_in_the_rfc() {
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(accept(&key), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
