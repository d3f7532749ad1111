//! The mirror of the request path: from the local program to any destination, over mutual TLS for destinations in the
//! mesh.

pub(crate) mod egress;
pub(crate) mod intercepted;
pub(crate) mod resolve;
pub(crate) mod tcp;

use std::{convert::Infallible, net::SocketAddr, rc::Rc};

use http::{HeaderMap, HeaderName, Request, Response, Version, header, uri};
use hyper::body::{Body as _, Incoming};
use merlon_config::snapshot::Endpoint;
use merlon_policy::principal::Principal;
use tokio::net::TcpStream;

use self::resolve::Resolution;
use crate::{
    downstream::{
        connection,
        peer::Peer,
        respond::{Refused, respond},
    },
    protocol::{
        convert::as_h2,
        denial::Denial,
        peer_header::{self, Proto},
        request_head,
        reserved::is_between_proxies,
        websocket,
    },
    request::{
        call::Call,
        exchange::Exchange,
        forwarded_response::{ForwardedResponse, attribute_upstream_error, downstream_response},
        open_permit::OpenPermit,
        response_body::ResponseBody,
        worker_context::WorkerContext,
    },
    state::secrets,
    telemetry::metrics::Direction,
    upstream::{body::RequestBody, route::Route},
};

/// Serves a connection from the local program.
pub(crate) async fn connection(local: Rc<WorkerContext>, stream: TcpStream, address: SocketAddr) {
    let peer = Peer::new(&local, Direction::Outbound, address, Principal::Anonymous);
    connection::serve_plain(&local, stream, Rc::new(peer), serve).await;
}

/// Serves one request of the local program.
pub(crate) async fn serve(
    peer: Rc<Peer>,
    request: Request<Incoming>,
    broken: Option<Denial>,
) -> Result<Response<ResponseBody>, Infallible> {
    respond(&peer, request, broken, async |request, exchange| {
        let Some(_in_flight) = peer.local.start_request() else {
            return Err((Denial::Overload, exchange));
        };
        let mut call = receive(&peer, request, exchange)?;
        let outcome = match resolve::resolve(&peer, &call).await {
            Ok(Resolution::Mesh(route)) => {
                let body = call.stream();
                forward(&mut call, &route, body, None).await
            }
            Ok(Resolution::Outside { host, port }) => egress::forward(&mut call, &host, port).await,
            Err(denial) => Err(denial),
        };
        match outcome {
            Ok(forwarded) => Ok(forwarded.conclude(call)),
            Err(denial) => Err((denial, call.exchange)),
        }
    })
    .await
}

/// Reads the head of a request, and refuses one that does not have exactly one meaning.
fn receive(
    peer: &Peer,
    request: Request<Incoming>,
    mut exchange: Box<Exchange>,
) -> Result<Call, Refused> {
    let current = peer.local.current();
    exchange.src = current.own();
    exchange.current = Some(Rc::clone(&current));
    let (mut head, body) = request.into_parts();
    if head.uri.scheme() == Some(&uri::Scheme::HTTPS) && head.version < Version::HTTP_2 {
        let sentence = "the proxy does not open TLS on behalf of the program";
        return Err((Denial::NoRoute(sentence.into()), exchange));
    }
    let parsed = match request_head::read(&mut head) {
        Ok(parsed) => parsed,
        Err(denial) => return Err((denial, exchange)),
    };
    strip_own(&mut head.headers);
    exchange.set_parsed_head(&mut head, &parsed.authority);
    Ok(peer.call(exchange, current, (head, parsed), body))
}

/// Removes headers that the program must not set: TLS proves its identity, not a header.
fn strip_own(headers: &mut HeaderMap) {
    let own = |name: &HeaderName| is_between_proxies(name.as_str().as_bytes());
    if headers.keys().any(own) {
        let names: Vec<HeaderName> = headers.keys().filter(|name| own(name)).cloned().collect();
        for name in names {
            headers.remove(name);
        }
    }
}

/// Sends a request to a destination in the mesh.
///
/// # Errors
/// The failure of the upstream.
pub(crate) async fn forward(
    call: &mut Call,
    route: &Route,
    body: RequestBody,
    open_permit: Option<Rc<OpenPermit>>,
) -> Result<ForwardedResponse, Denial> {
    call.exchange.dst = Some(Rc::clone(&route.name));
    if let Some(snapshot) = call.current.snapshot() {
        // When two services set the same header, the value of the called service wins.
        for service in route.also.iter().chain([&route.destination.name]) {
            secrets::apply(&snapshot.credentials, service, &mut call.head.headers);
        }
    }
    call.proto = route.proto(call.proto);
    if call.parsed.expect_continue
        && matches!(body, RequestBody::Stream(..))
        && let Some(refusal) =
            Box::pin(check_continue(call, route, &body, open_permit.clone())).await?
    {
        return Ok(refusal);
    }
    let (request, upgrade) = call.outgoing(body);
    let mut request = as_h2(request, &call.parsed.authority, "https");
    request
        .headers_mut()
        .insert(peer_header::NAME, route.claim(call.proto).clone());
    let request = match upgrade {
        Some(_) => websocket::convert_request(request, Proto::H2, &call.local.random),
        None => request,
    };
    let progress = call.exchange.progress.clone();
    let local = Rc::clone(&call.local);
    let sent = local
        .peers
        .send((&route.destination, route.port), call.proto, request)
        .await;
    let sent = sent.map_err(|denial| attribute_upstream_error(denial, progress.as_deref()))?;
    call.exchange.upstream = Some(sent.address);
    // Between proxies a WebSocket is always extended CONNECT; a plain endpoint gets the program's own protocol.
    if !sent.plain {
        call.proto = Proto::H2;
    }
    downstream_response(call, sent.response, Some(sent.pooled), upgrade, open_permit)
}

/// Asks the other proxy whether it would accept a request before the body is read: a refused caller must not send one
/// (RFC 9110 §10.1.1). Returns the refusal, if there is one.
async fn check_continue(
    call: &mut Call,
    route: &Route,
    body: &RequestBody,
    open_permit: Option<Rc<OpenPermit>>,
) -> Result<Option<ForwardedResponse>, Denial> {
    let destination = &route.destination;
    let in_mesh = |endpoint: &Endpoint| endpoint.identity.is_some();
    let claim = route.claim(call.proto);
    let Some(question) = peer_header::question(claim, body.size_hint().exact())
        .filter(|_| destination.endpoints.iter().all(in_mesh))
    else {
        return Ok(None);
    };
    let mut request = Request::new(RequestBody::Empty);
    request.headers_mut().clone_from(&call.head.headers);
    request.headers_mut().remove(header::CONTENT_LENGTH);
    *request.method_mut() = call.head.method.clone();
    *request.uri_mut() = call.head.uri.clone();
    let mut request = as_h2(request, &call.parsed.authority, "https");
    request.headers_mut().insert(peer_header::NAME, question);
    let local = Rc::clone(&call.local);
    let sent = local
        .peers
        .send((destination, route.port), Proto::H2, request)
        .await?;
    if sent.response.headers().contains_key(peer_header::CONTINUE) {
        return Ok(None);
    }
    call.exchange.upstream = Some(sent.address);
    downstream_response(call, sent.response, Some(sent.pooled), None, open_permit).map(Some)
}
