//! WebSockets: asked for by `Upgrade` in HTTP/1.1 and by extended CONNECT in HTTP/2 (RFC 8441), turned into one
//! another where the next connection speaks the other.

use std::rc::Rc;

use aws_lc_rs::digest;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderName, HeaderValue, Method, StatusCode, Version, header, request, response};
use hyper::{ext::Protocol, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;

use super::peer_header::Proto;
use crate::{
    outbound::tcp::copy_both,
    request::{
        exchange::Exchange,
        open_permit::{Leash, Standing},
    },
    upstream::Returned,
};

const KEY: HeaderName = header::SEC_WEBSOCKET_KEY;
const ACCEPT: HeaderName = header::SEC_WEBSOCKET_ACCEPT;

/// One side of an upgrade that was asked for.
#[derive(Debug)]
pub(crate) struct Asked {
    downstream: OnUpgrade,
    /// Kept for an answer that comes over HTTP/2, which has none.
    key: Option<HeaderValue>,
}

/// Takes what becomes the downstream connection out of a request.
pub(crate) fn take(head: &mut request::Parts) -> Option<Asked> {
    let downstream = head.extensions.remove::<OnUpgrade>()?;
    Some(Asked {
        downstream,
        key: head.headers.get(KEY).cloned(),
    })
}

/// Gives a WebSocket request the form that the next connection speaks.
pub(crate) fn ask(
    head: &mut request::Parts,
    proto: Proto,
    random: &crate::protocol::trace_context::Random,
) {
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
}

/// Whether the upstream agreed.
pub(crate) fn agreed(status: StatusCode, proto: Proto) -> bool {
    status
        == if proto == Proto::Http1 {
            StatusCode::SWITCHING_PROTOCOLS
        } else {
            StatusCode::OK
        }
}

/// Gives an agreement the form that the downstream connection speaks.
pub(crate) fn answer(head: &mut response::Parts, version: Version, asked: &Asked) {
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
    if let Some(key) = asked
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

/// What an upgraded connection keeps until its end.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) exchange: Box<Exchange>,
    pub(crate) held: Option<Returned>,
    pub(crate) standing: Option<Rc<Standing>>,
}

/// Carries bytes both ways once both sides have switched, until both have ended or policy no longer permits it.
pub(crate) fn tunnel(asked: Asked, upstream: OnUpgrade, kept: Kept) {
    tokio::task::spawn_local(async move {
        let Kept {
            mut exchange,
            held,
            standing,
        } = kept;
        let (downstream, upstream) = match tokio::join!(asked.downstream, upstream) {
            (Ok(downstream), Ok(upstream)) => (TokioIo::new(downstream), TokioIo::new(upstream)),
            _ => return exchange.conclude(true),
        };
        let unheld = Leash::default();
        let leash = standing.as_ref().map_or(&unheld, |held| &held.leash);
        let (copied, whole) = copy_both(downstream, upstream, leash).await;
        exchange.received(copied.received);
        exchange.bytes_out = copied.sent;
        if let Some(denial) = standing.and_then(|standing| standing.over()) {
            exchange.ended(denial);
        }
        exchange.conclude(!whole);
        drop(held);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_value_is_that_of_the_rfc() {
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(accept(&key), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
