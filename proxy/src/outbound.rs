//! The request path's mirror: from the own program to whoever it names, over mutual TLS or not at all.

pub(crate) mod egress;
pub(crate) mod intercepted;
pub(crate) mod resolve;
pub(crate) mod tcp;

use std::{convert::Infallible, net::SocketAddr, rc::Rc, time::Instant};

use http::{HeaderName, HeaderValue, Request, Response, Uri, Version, header, uri};
use hyper::body::{Body as _, Incoming};
use merlon_config::snapshot::Endpoint;
use merlon_policy::{principal::Principal, validate::RouteMatch};
use tokio::net::TcpStream;

use self::resolve::{Route, Whither};
use crate::{
    downstream::{
        connection,
        respond::{Refused, contained},
    },
    inbound::{self, Answer, IN_FLIGHT, Peer},
    protocol::{
        denial::Denial,
        headers::{is_between_proxies, join_cookies},
        peer_header::{self, Proto},
        problem::is_grpc,
        request_head, websocket,
    },
    request::{
        checks::stage::Call,
        exchange::Exchange,
        open_permit::Standing,
        response_body::{AnswerBody, Flow, RequestBody},
    },
    state::secrets,
    telemetry::metrics::Direction,
    worker::{Counted, Local},
};

/// A connection of the own program.
pub(crate) async fn connection(local: Rc<Local>, stream: TcpStream, address: SocketAddr) {
    let mut peer = Peer::new(&local, Direction::Outbound, address, Principal::Anonymous);
    peer.own_port = stream.local_addr().ok().map(|own| own.port());
    connection::serve_plain(&local, stream, Rc::new(peer), serve).await;
}

/// Answers one request of the own program.
pub(crate) async fn serve(
    peer: Rc<Peer>,
    request: Request<Incoming>,
    broken: Option<Denial>,
) -> Result<Response<AnswerBody>, Infallible> {
    contained(&peer, request, broken, async |request, exchange| {
        decide(&peer, request, exchange).await
    })
    .await
}

async fn decide(
    peer: &Rc<Peer>,
    request: Request<Incoming>,
    mut exchange: Box<Exchange>,
) -> Result<Response<AnswerBody>, Refused> {
    let local = &peer.local;
    let Some(_in_flight) = Counted::within(Rc::clone(local), |local| &local.in_flight, IN_FLIGHT)
    else {
        return Err((Denial::Overload, exchange));
    };
    let current = local.current();
    exchange.src = current.own();
    exchange.current = Some(Rc::clone(&current));
    let (mut head, body) = request.into_parts();
    if head.uri.scheme() == Some(&uri::Scheme::HTTPS) && head.version < Version::HTTP_2 {
        return Err((
            Denial::NoRoute("this proxy does not open TLS in the program's place".into()),
            exchange,
        ));
    }
    let reading = match request_head::read(&mut head) {
        Ok(reading) => reading,
        Err(denial) => return Err((denial, exchange)),
    };
    strip_own(&mut head.headers);
    exchange.trace(&mut head.headers);
    exchange.uri = head.uri.clone();
    exchange.host = Some(reading.authority.clone());
    let mut call = Call {
        local: Rc::clone(local),
        current,
        address: peer.address,
        session: None,
        own_port: peer.own_port,
        now: exchange.at,
        clock: Instant::now(),
        body: (!body.is_end_stream()).then_some(body),
        question: None,
        grpc: is_grpc(&head.headers),
        proto: if head.version >= Version::HTTP_2 {
            Proto::H2
        } else {
            Proto::Http1
        },
        user: None,
        route: RouteMatch::NONE,
        head,
        reading,
        exchange,
    };
    let outcome = match resolve::whither(peer, &call).await {
        Ok(Whither::Mesh(route)) => {
            let body = stream(&mut call);
            forward(&mut call, &route, body, None).await
        }
        Ok(Whither::Outside { host, port }) => egress::pass(&mut call, &host, port).await,
        Err(denial) => Err(denial),
    };
    match outcome {
        Ok(answer) => Ok(inbound::conclude(answer, call)),
        Err(denial) => Err((denial, call.exchange)),
    }
}

/// What a program cannot say about itself: whom the mesh takes it for is proved by TLS.
fn strip_own(headers: &mut http::HeaderMap) {
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
/// What went wrong upstream.
pub(crate) async fn forward(
    call: &mut Call,
    route: &Route,
    body: RequestBody,
    standing: Option<Rc<Standing>>,
) -> Result<Answer, Denial> {
    call.exchange.dst = Some(Rc::clone(&route.name));
    if let Some(snapshot) = call.current.snapshot() {
        // Of two that give the same header, the one that is called has the last word.
        for service in route.also.iter().chain([&route.destination.name]) {
            secrets::apply(&snapshot.credentials, service, &mut call.head.headers);
        }
    }
    call.proto = route.proto(call.proto);
    if call.reading.expects
        && matches!(body, RequestBody::Stream(..))
        && let Some(refusal) = Box::pin(ask_first(call, route, &body, standing.clone())).await?
    {
        return Ok(refusal);
    }
    let (request, asked) = outgoing(call, body);
    let mut request = as_h2(request, &call.reading.authority, "https");
    request
        .headers_mut()
        .insert(peer_header::NAME, route.claim(call.proto).clone());
    let request = if asked.is_some() {
        ask_mesh(request, call)
    } else {
        request
    };
    let flow = call.exchange.flow.clone();
    let local = Rc::clone(&call.local);
    let sent = local
        .peers
        .send(
            &local,
            (&route.destination, route.port),
            call.proto,
            request,
        )
        .await;
    let sent = sent.map_err(|denial| inbound::blame(denial, flow.as_deref()))?;
    call.exchange.upstream = Some(sent.address);
    // Between proxies a WebSocket is always extended CONNECT; a plain endpoint got it as the program spoke.
    if !sent.plain {
        call.proto = Proto::H2;
    }
    inbound::answer(call, sent.response, Some(sent.held), asked, standing)
}

/// Whether the other proxy would take a request, before its body is asked for: who is refused sends none (RFC 9110
/// §10.1.1). The answer is the refusal, if it is one.
async fn ask_first(
    call: &mut Call,
    route: &Route,
    body: &RequestBody,
    standing: Option<Rc<Standing>>,
) -> Result<Option<Answer>, Denial> {
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
    let mut request = as_h2(request, &call.reading.authority, "https");
    request.headers_mut().insert(peer_header::NAME, question);
    let local = Rc::clone(&call.local);
    let sent = local
        .peers
        .send(&local, (destination, route.port), Proto::H2, request)
        .await?;
    if sent.response.headers().contains_key(peer_header::CONTINUE) {
        return Ok(None);
    }
    call.exchange.upstream = Some(sent.address);
    inbound::answer(call, sent.response, Some(sent.held), None, standing).map(Some)
}

fn ask_mesh(request: Request<RequestBody>, call: &Call) -> Request<RequestBody> {
    let (mut head, body) = request.into_parts();
    websocket::ask(&mut head, Proto::H2, &call.local.random);
    Request::from_parts(head, body)
}

/// The request's body as it comes.
pub(crate) fn stream(call: &mut Call) -> RequestBody {
    match call.body.take() {
        None => RequestBody::Empty,
        Some(incoming) => {
            let flow = Flow::new(None, None);
            call.exchange.flow = Some(Rc::clone(&flow));
            RequestBody::Stream(incoming, flow)
        }
    }
}

/// The request that goes on, with all of its head, and what it becomes when it asks for a switch.
pub(crate) fn outgoing(
    call: &mut Call,
    body: RequestBody,
) -> (Request<RequestBody>, Option<websocket::Asked>) {
    let asked = if call.reading.websocket {
        websocket::take(&mut call.head)
    } else {
        None
    };
    let mut request = Request::new(body);
    std::mem::swap(request.headers_mut(), &mut call.head.headers);
    *request.method_mut() = call.head.method.clone();
    *request.uri_mut() = call.head.uri.clone();
    (request, asked)
}

/// For an HTTP/2 connection: the authority stands in the target.
pub(crate) fn as_h2(
    mut request: Request<RequestBody>,
    authority: &uri::Authority,
    scheme: &str,
) -> Request<RequestBody> {
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
    // INVARIANT: all three parts are there, which is all that is asked.
    *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
    *request.version_mut() = Version::HTTP_2;
    request
}

/// For an HTTP/1.1 connection: the authority stands in `Host`.
pub(crate) fn with_host(
    mut request: Request<RequestBody>,
    authority: &uri::Authority,
) -> Request<RequestBody> {
    *request.version_mut() = Version::HTTP_11;
    if let Ok(host) = HeaderValue::from_str(authority.as_str()) {
        request.headers_mut().insert(header::HOST, host);
    }
    join_cookies(request.headers_mut());
    if request.headers().contains_key(header::TE) {
        // `trailers`: we take them and pass them on, and who says so says it to this connection (RFC 9110 §10.1.4).
        let te = HeaderValue::from_static("te");
        request.headers_mut().insert(header::CONNECTION, te);
    }
    request
}

/// Turns a request that was meant for HTTP/2 into one for HTTP/1.1.
pub(crate) fn as_http1(mut request: Request<RequestBody>) -> Request<RequestBody> {
    let parts = std::mem::take(request.uri_mut()).into_parts();
    if let Some(both) = parts.path_and_query {
        *request.uri_mut() = Uri::from(both);
    }
    match parts.authority {
        Some(authority) => with_host(request, &authority),
        None => request,
    }
}
