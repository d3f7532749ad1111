//! The response to a permitted request: from an upstream, or a protocol switch.

use std::rc::Rc;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode};
use hyper::{body::Incoming, upgrade::OnUpgrade};

use super::{
    call::Call,
    open_permit::OpenPermit,
    response_body::ResponseBody,
    tunnel::{self, Switched},
};
use crate::{
    protocol::{
        denial::{Denial, Upstream},
        headers, peer_header, websocket,
    },
    upstream::{PoolGuard, body::BodyProgress},
};

/// An upstream's response, and the tunnel that it starts.
#[derive(Debug)]
pub(crate) struct ForwardedResponse {
    pub(crate) response: Response<ResponseBody>,
    /// A protocol switch that the upstream accepted: the tunnel takes over the exchange.
    pub(crate) switched: Option<Switched>,
}

impl ForwardedResponse {
    /// The answer to another proxy's question: it may send the request with its body.
    pub(crate) fn send_body() -> Self {
        let mut response = Response::new(ResponseBody::generated(Bytes::new()));
        *response.status_mut() = StatusCode::NO_CONTENT;
        let yes = HeaderValue::from_static("yes");
        response.headers_mut().insert(peer_header::CONTINUE, yes);
        Self {
            response,
            switched: None,
        }
    }

    /// Ties the end of the request to the end of its body or tunnel.
    pub(crate) fn conclude(self, call: Call) -> Response<ResponseBody> {
        match self.switched {
            Some(switched) => {
                tunnel::upgraded(switched, call.exchange);
                self.response
            }
            None => self.response.map(|body| body.with_exchange(call.exchange)),
        }
    }
}

/// Attributes an upstream failure to the caller when the caller's body caused it.
pub(crate) fn attribute_upstream_error(denial: Denial, progress: Option<&BodyProgress>) -> Denial {
    match (denial, progress) {
        (Denial::Upstream(_), Some(progress)) if progress.exceeded_limit().is_some() => {
            Denial::BodyTooLarge(progress.exceeded_limit().unwrap_or_default())
        }
        (Denial::Upstream(_), Some(progress)) if progress.broken() => Denial::BodyBroken,
        (denial, _) => denial,
    }
}

/// Converts an upstream's response to the response for the caller.
pub(crate) fn downstream_response(
    call: &mut Call,
    response: Response<Incoming>,
    pooled: Option<PoolGuard>,
    upgrade: Option<websocket::UpgradeRequest>,
    open_permit: Option<Rc<OpenPermit>>,
) -> Result<ForwardedResponse, Denial> {
    let (mut head, incoming) = response.into_parts();
    headers::strip_response(&mut head.headers);
    let version = call.head.version;
    if let Some(upgrade) = upgrade
        && websocket::is_accepted(head.status, call.proto)
    {
        let upstream = head
            .extensions
            .remove::<OnUpgrade>()
            .ok_or(Upstream::Protocol)?;
        websocket::convert_response(&mut head, version, &upgrade);
        call.exchange.set_status(101);
        let response = Response::from_parts(head, ResponseBody::generated(Bytes::new()));
        return Ok(ForwardedResponse {
            response,
            switched: Some(Switched {
                upgrade,
                upstream,
                pooled,
                open_permit,
            }),
        });
    }
    // An unsolicited switch would let bytes pass that no policy decided on.
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Upstream::Protocol.into());
    }
    head.version = version;
    head.extensions.clear();
    call.exchange.set_status(head.status.as_u16());
    let body = ResponseBody::upstream(incoming, pooled, open_permit);
    Ok(ForwardedResponse {
        response: Response::from_parts(head, body),
        switched: None,
    })
}
