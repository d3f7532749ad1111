//! The edge: requests from outside the mesh, through the same checks as any other, then on to a service by mesh TLS.

mod listen;
pub(crate) mod routes;

use std::{convert::Infallible, rc::Rc};

use http::{HeaderName, HeaderValue, Request, Response, header, request::Parts};
use hyper::body::Incoming;

use crate::{
    body::AnswerBody,
    denial::Denial,
    inbound::{self, Answer, Peer},
    layers::stage::Admitted,
    outbound::{self, resolve},
    peer_header,
};

/// Answers one request from outside.
pub(crate) async fn serve(
    peer: Rc<Peer>,
    request: Request<Incoming>,
    broken: Option<Denial>,
) -> Result<Response<AnswerBody>, Infallible> {
    let mut response = inbound::serve(peer, request, broken).await?;
    // What serves behind the edge is nobody's business outside.
    response.headers_mut().remove(header::SERVER);
    response.headers_mut().remove(POWERED_BY);
    Ok(response)
}

const POWERED_BY: HeaderName = HeaderName::from_static("x-powered-by");

/// Finds the backend by the Gateway's routes and sends the request to it.
pub(crate) async fn forward(admitted: Admitted<'_>, peer: &Peer) -> Result<Answer, Denial> {
    let Admitted {
        call,
        body,
        standing,
        ..
    } = admitted;
    let snapshot = call.current.snapshot().ok_or(Denial::Unconfigured)?;
    let gateway = snapshot
        .workload
        .gateway
        .as_ref()
        .ok_or(Denial::Unconfigured)?;
    let (host, _) = resolve::split_port(call.reading.authority.as_str())
        .ok_or(Denial::Authority("the host is malformed"))?;
    let asked = routes::Asked {
        host,
        method: call.method(),
        path: call.head.uri.path(),
        headers: &call.head.headers,
    };
    let matched = routes::find(gateway, peer.listener_host.as_deref(), &asked)
        .ok_or(Denial::NoRoute("no route of this gateway fits".into()))?;
    let backend = matched
        .backend(call.local.random.next())
        .ok_or(Denial::NoBackend)?;
    let destination = match resolve::destination(&call.local, &backend.service).await {
        Ok(destination) => destination,
        // The route exists and its backend does not: that is not the caller's mistake (Gateway API).
        Err(Denial::NoRoute(_)) => return Err(Denial::NoBackend),
        Err(denial) => return Err(denial),
    };
    let route =
        resolve::Route::to(destination, Some(backend.port)).map_err(|_| Denial::NoBackend)?;
    tell_backend(&mut call.head, peer, call.reading.authority.as_str());
    if let Some(user) = &call.user {
        call.head
            .headers
            .insert(crate::layers::headers::USER, inbound::printable(&user.id));
    }
    call.head.headers.remove(peer_header::NAME);
    let held = Some(Rc::clone(&standing));
    let answer = std::pin::pin!(outbound::forward(call, &route, body, held));
    standing.hold(answer).await
}

/// What the gateway says of the caller, in the headers that it just took from it.
fn tell_backend(head: &mut Parts, peer: &Peer, authority: &str) {
    let address = peer.address.ip().to_string();
    if let Ok(address) = HeaderValue::try_from(address) {
        head.headers
            .insert(HeaderName::from_static("x-forwarded-for"), address);
    }
    if let Ok(host) = HeaderValue::from_str(authority) {
        head.headers
            .insert(HeaderName::from_static("x-forwarded-host"), host);
    }
    let scheme = if peer.session.is_some() {
        "https"
    } else {
        "http"
    };
    head.headers.insert(
        HeaderName::from_static("x-forwarded-proto"),
        HeaderValue::from_static(scheme),
    );
}
