//! The gateway: requests from outside the mesh pass the same checks as all others, then go to a service over mesh TLS.

pub(crate) mod certificate;
pub(crate) mod listen;
pub(crate) mod routes;

use std::{convert::Infallible, rc::Rc};

use http::{HeaderName, HeaderValue, Request, Response, header, request::Parts};
use hyper::body::Incoming;

use crate::{
    downstream::peer::Peer,
    inbound,
    outbound::{self, resolve},
    protocol::{
        denial::Denial,
        headers, host,
        peer_header::{self, Proto},
    },
    request::{
        checks::stage::Admitted, forwarded_response::ForwardedResponse, response_body::ResponseBody,
    },
    upstream::route,
};

/// Serves one request from outside the mesh.
pub(crate) async fn serve(
    peer: Rc<Peer>,
    request: Request<Incoming>,
    broken: Option<Denial>,
) -> Result<Response<ResponseBody>, Infallible> {
    let mut response = inbound::serve_with(peer, request, broken, forward).await?;
    // Do not reveal the server software behind the gateway.
    response.headers_mut().remove(header::SERVER);
    response.headers_mut().remove(POWERED_BY);
    Ok(response)
}

const POWERED_BY: HeaderName = HeaderName::from_static("x-powered-by");

/// Selects the backend by the Gateway's routes and sends the request to it.
pub(crate) async fn forward(
    admitted: Admitted<'_>,
    peer: &Peer,
) -> Result<ForwardedResponse, Denial> {
    let Admitted {
        call,
        body,
        open_permit,
        ..
    } = admitted;
    let snapshot = call.current.snapshot().ok_or(Denial::Unconfigured)?;
    let gateway = snapshot
        .workload
        .gateway
        .as_ref()
        .ok_or(Denial::Unconfigured)?;
    let (host, _) = host::split_port(call.parsed.authority.as_str())
        .ok_or(Denial::Authority("the host is malformed"))?;
    let query = routes::RouteQuery {
        host,
        method: call.method(),
        path: call.head.uri.path(),
        headers: &call.head.headers,
    };
    // With TLS, SNI selected the listener: a request cannot reach the routes of another one.
    let name = match &peer.session {
        Some(_) => peer.server_name.as_deref(),
        None => Some(host),
    };
    let matched = routes::listener(gateway, peer.own_port, name)
        .and_then(|listener| routes::find(gateway, listener, &query))
        .ok_or(Denial::NoRoute("no route of this gateway matches".into()))?;
    let backend = matched
        .backend(call.local.random.next())
        .ok_or(Denial::NoBackend)?;
    let destination = match resolve::destination(&call.local, &backend.service).await {
        Ok(destination) => destination,
        // The route exists but its backend does not: Gateway API requires 500.
        Err(Denial::NoRoute(_)) => return Err(Denial::NoBackend),
        Err(denial) => return Err(denial),
    };
    let route = route::Route::to(destination, Some(backend.port)).map_err(|_| Denial::NoBackend)?;
    set_forwarded_headers(&mut call.head, peer, call.parsed.authority.as_str());
    // For a program without a sidecar. A sidecar believes no peer about the user and verifies the token itself.
    if let Some(user) = &call.user {
        call.head
            .headers
            .insert(headers::USER, headers::printable(&user.id));
    }
    call.head.headers.remove(peer_header::NAME);
    // The client's HTTP version does not say what the backend supports. The port's protocol does, and gRPC always needs
    // HTTP/2.
    call.proto = match call.grpc {
        true => Proto::H2,
        false => Proto::Http1,
    };
    let permit = Some(Rc::clone(&open_permit));
    let response = std::pin::pin!(outbound::forward(call, &route, body, permit));
    open_permit.until_revoked(response).await
}

/// Sets the `x-forwarded-*` headers; those of the caller were removed before.
fn set_forwarded_headers(head: &mut Parts, peer: &Peer, authority: &str) {
    let scheme = if peer.session.is_some() {
        "https"
    } else {
        "http"
    };
    let address = peer.address.ip().to_canonical().to_string();
    for (name, value) in headers::FORWARDED
        .into_iter()
        .zip([&address, authority, scheme])
    {
        if let Ok(value) = HeaderValue::from_str(value) {
            head.headers.insert(name, value);
        }
    }
}
