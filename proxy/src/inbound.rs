//! THE REQUEST PATH: from another proxy's connection to the program beside us, in the order a request meets it.

use std::{cell::RefCell, convert::Infallible, net::SocketAddr, rc::Rc, time::Instant};

use http::{HeaderValue, Request, Response, Version};
use hyper::body::{Body as _, Incoming};
use merlon_certs::{MERLON_H2, MeshTls};
use merlon_policy::{principal::Principal, validate::RouteMatch};
use tokio::net::TcpStream;

use crate::{
    downstream::{
        connection::{self, Stream},
        respond::{Refused, contained},
    },
    outbound::{resolve::Fixed, tcp},
    protocol::{
        denial::{Denial, Upstream},
        headers::{self, CALLER, USER},
        peer_header::{self, Proto},
        problem::is_grpc,
        request_head,
        tls_session::Session,
        websocket,
    },
    request::{
        checks::{
            address_limit::address_limit,
            authenticate::authenticate,
            authorize::{authorize, record_refusal},
            quota::quota,
            route::{Target, Targets, route},
            stage::{Admitted, Call},
            validate::validate,
        },
        exchange::Exchange,
        open_permit::Standing,
        response_body::{AnswerBody, RequestBody},
    },
    telemetry::metrics::{Direction, Transport},
    worker::{Counted, Local},
};

/// Requests that one worker carries at once; more are told to come again.
pub(crate) const IN_FLIGHT: usize = 4_096;

/// Who is at the other end of a connection, and what it was found to mean.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) local: Rc<Local>,
    pub(crate) direction: Direction,
    pub(crate) address: SocketAddr,
    /// The port of our own listener.
    pub(crate) own_port: Option<u16>,
    pub(crate) principal: Principal,
    /// The SPIFFE ID, for the log.
    pub(crate) id: Option<Rc<str>>,
    /// The SPIFFE ID, for the program.
    pub(crate) caller: Option<HeaderValue>,
    /// The name that a TLS client asked for.
    pub(crate) server_name: Option<Box<str>>,
    /// Its TLS, if it has any.
    pub(crate) session: Option<Rc<Session>>,
    /// For a connection that leads to one port of a Service.
    pub(crate) fixed: Option<Fixed>,
    /// The program's port that was called, by somebody who says nothing of Services.
    pub(crate) program_port: Option<u16>,
    /// The program's port that was dialled, where the network's rules led the connection here. Whatever a caller claims
    /// to mean has to be there: what lets somebody dial one port, such as a NetworkPolicy, lets nobody reach another.
    pub(crate) dialled: Option<u16>,
    targets: RefCell<Targets>,
}

impl Peer {
    pub(crate) fn new(
        local: &Rc<Local>,
        direction: Direction,
        address: SocketAddr,
        principal: Principal,
    ) -> Self {
        let id = match &principal {
            Principal::Workload(id) => Some(id.to_string()),
            Principal::Anonymous => None,
        };
        Self {
            local: Rc::clone(local),
            direction,
            address,
            own_port: None,
            principal,
            caller: id.as_deref().and_then(|id| HeaderValue::from_str(id).ok()),
            id: id.map(Rc::from),
            server_name: None,
            session: None,
            fixed: None,
            program_port: None,
            dialled: None,
            targets: RefCell::default(),
        }
    }

    /// Whether a verified mesh identity is at the other end: it is told the policy that refused it.
    pub(crate) fn is_meshed(&self) -> bool {
        matches!(self.principal, Principal::Workload(_))
    }
}

impl Peer {
    /// Whether a target is where the caller connected to.
    ///
    /// # Errors
    /// [`Denial::NoRoute`]: it is at another port.
    pub(crate) fn dials(&self, target: &Target) -> Result<(), Denial> {
        match self.dialled {
            Some(port) if port != target.program.port() => Err(Denial::NoRoute(
                "the service that is meant is not at the port that was called".into(),
            )),
            _ => Ok(()),
        }
    }

    /// Whether an edge of the mesh is at the other end.
    fn is_gateway(&self) -> bool {
        let Principal::Workload(id) = &self.principal else {
            return false;
        };
        let current = self.local.current();
        let snapshot = current.snapshot();
        snapshot.is_some_and(|snapshot| snapshot.mesh.gateways.contains(id))
    }
}

/// A connection to the inbound listener: mesh TLS, and nothing else while this proxy has or should have an identity.
pub(crate) async fn connection(local: Rc<Local>, stream: TcpStream, address: SocketAddr) {
    led(local, stream, address, None).await;
}

/// The same, of a connection that rules led here from a port of the program.
pub(crate) async fn led(
    local: Rc<Local>,
    stream: TcpStream,
    address: SocketAddr,
    dialled: Option<u16>,
) {
    if !local.shared.has_identity {
        let peer = Rc::new(Peer::new(
            &local,
            Direction::Inbound,
            address,
            Principal::Anonymous,
        ));
        return connection::serve_plain(&local, stream, peer, serve).await;
    }
    // Without an identity there is nothing to answer with, and nothing is ever answered in its place.
    let Some(config) = local.server_tls() else {
        return;
    };
    let Some(stream) = connection::handshake(&local, Direction::Inbound, config, stream).await
    else {
        return;
    };
    let tls = stream.get_ref().1;
    let Some(Ok(leaf)) = tls.peer_certificates().map(MeshTls::peer) else {
        return;
    };
    let speaks_h2 = tls.alpn_protocol() == Some(MERLON_H2);
    let session = Session::of(tls, leaf.dns_names);
    let mut peer = Peer::new(
        &local,
        Direction::Inbound,
        address,
        Principal::Workload(leaf.id),
    );
    peer.session = Some(Rc::new(session));
    peer.dialled = dialled;
    let peer = Rc::new(peer);
    if speaks_h2 {
        let peer = Rc::clone(&peer);
        tokio::select! {
            () = connection::serve_h2(&local, Stream::mesh(stream), Transport::MeshH2, peer, serve) => {}
            () = local.identity_gone() => {}
        }
    } else {
        tcp::inbound(&peer, stream).await;
    }
}

/// Answers one request.
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

/// Reads a head, and hands what it says to the checks.
async fn decide(
    peer: &Rc<Peer>,
    request: Request<Incoming>,
    mut exchange: Box<Exchange>,
) -> Result<Response<AnswerBody>, Refused> {
    let Some(_in_flight) =
        Counted::within(Rc::clone(&peer.local), |local| &local.in_flight, IN_FLIGHT)
    else {
        return Err((Denial::Overload, exchange));
    };
    let (mut head, body) = request.into_parts();
    if head
        .headers
        .get_all(peer_header::NAME)
        .iter()
        .nth(1)
        .is_some()
        && peer.is_meshed()
    {
        // Which of two is meant nobody can know. Strangers' are removed, whatever they are.
        let denial = Denial::Header("`merlon-peer` came twice");
        return Err((denial, exchange));
    }
    let claim = head.headers.remove(peer_header::NAME);
    let question = claim
        .as_ref()
        .filter(|_| peer.is_meshed())
        .and_then(peer_header::split_question);
    let (claim, question) = match question {
        Some((claim, length)) => (Some(claim), Some(length)),
        None => (claim, None),
    };
    let reading = match request_head::read(&mut head) {
        Ok(reading) => reading,
        Err(denial) => return Err((denial, exchange)),
    };
    // What only we may set goes before anything reads it, on every route, and is set afresh after the checks.
    match peer.is_gateway() {
        true => headers::strip_ours_but_forwarded(&mut head.headers),
        false => headers::strip_ours(&mut head.headers),
    }
    exchange.trace(&mut head.headers);
    exchange.uri = head.uri.clone();
    exchange.host = Some(reading.authority.clone());
    // A browser may come with another host on the connection it has (RFC 9113 §9.1.1); the certificate was for one.
    if peer
        .server_name
        .as_deref()
        .is_some_and(|name| name != reading.authority.host())
    {
        return Err((Denial::Misdirected, exchange));
    }
    let current = peer.local.current();
    exchange.current = Some(Rc::clone(&current));
    let grpc = is_grpc(&head.headers);
    let mut call = Call {
        local: Rc::clone(&peer.local),
        current,
        address: peer.address,
        session: peer.session.clone(),
        own_port: peer.own_port,
        now: exchange.at,
        clock: Instant::now(),
        body: (!body.is_end_stream()).then_some(body),
        question,
        grpc,
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
    let target = target(peer, &mut call, claim.as_ref());
    let outcome = checks(&mut call, target.clone(), peer).await;
    match outcome {
        Ok(answer) if call.question.is_some() => {
            // The request itself is still to come.
            call.exchange.forget();
            Ok(answer.response)
        }
        Ok(answer) => Ok(conclude(answer, call)),
        Err(denial) => {
            if let Some(target) = target.filter(|_| !denial.is_recorded_elsewhere()) {
                record_refusal(&call, &target);
            }
            Err((denial, call.exchange))
        }
    }
}

/// The service that is meant: what the other proxy claims, if it is ours; nobody else can claim anything.
fn target(peer: &Peer, call: &mut Call, claim: Option<&HeaderValue>) -> Option<Rc<Target>> {
    let snapshot = call.current.snapshot()?;
    match (peer.direction, &peer.principal, claim) {
        (Direction::Gateway, ..) => Target::gateway(snapshot, &peer.principal).map(Rc::new),
        (_, Principal::Workload(_), Some(claim)) => {
            let mut targets = peer.targets.borrow_mut();
            let (target, proto) =
                targets.find(claim, snapshot, call.current.generation, &peer.principal)?;
            call.proto = proto;
            Some(target)
        }
        (_, Principal::Workload(_), None) => None,
        (_, Principal::Anonymous, _) if peer.program_port.is_some() => {
            Target::on_port(snapshot, peer.program_port?, &peer.principal).map(Rc::new)
        }
        (_, Principal::Anonymous, _) => {
            Target::guessed(snapshot, call.reading.authority.as_str(), &peer.principal).map(Rc::new)
        }
    }
}

/// Every check in its order. Each takes the proof of the one before; `forward` takes the last.
async fn checks(
    call: &mut Call,
    target: Option<Rc<Target>>,
    peer: &Peer,
) -> Result<Answer, Denial> {
    if let Some(target) = &target {
        peer.dials(target)?;
    }
    let routed = route(call, target)?;
    // Before any signature is checked: checking costs more than asking.
    let screened = address_limit(routed)?;
    let authenticated = authenticate(screened).await?;
    // After the caller is proved, so that nobody spends another's share.
    let counted = quota(authenticated)?;
    let permitted = authorize(counted)?;
    // Last, because a body is read from nobody who may not send it.
    let admitted = validate(permitted).await?;
    if admitted.call.question.is_some() {
        return Ok(Answer::go_on());
    }
    forward(admitted, peer).await
}

/// An upstream's answer and what goes with it.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) response: Response<AnswerBody>,
    /// A switch of protocols that the upstream agreed to: the tunnel takes the exchange with it.
    pub(crate) switched: Option<Switched>,
}

impl Answer {
    /// To another proxy that asked: the body may come.
    fn go_on() -> Self {
        let mut response = Response::new(AnswerBody::ours(bytes::Bytes::new()));
        *response.status_mut() = http::StatusCode::NO_CONTENT;
        let yes = HeaderValue::from_static("yes");
        response.headers_mut().insert(peer_header::CONTINUE, yes);
        Self {
            response,
            switched: None,
        }
    }
}

/// Both ends of a tunnel that is about to begin.
#[derive(Debug)]
pub(crate) struct Switched {
    pub(crate) asked: websocket::Asked,
    pub(crate) upstream: hyper::upgrade::OnUpgrade,
    pub(crate) held: Option<crate::upstream::Returned>,
    pub(crate) standing: Option<Rc<Standing>>,
}

/// Sends an admitted request on, and only an admitted one.
async fn forward(admitted: Admitted<'_>, peer: &Peer) -> Result<Answer, Denial> {
    if peer.direction == Direction::Gateway {
        return crate::gateway::forward(admitted, peer).await;
    }
    let Admitted {
        call,
        target,
        body,
        standing,
        ..
    } = admitted;
    let asked = if call.reading.websocket {
        websocket::take(&mut call.head)
    } else {
        None
    };
    let mut request = Request::new(body);
    std::mem::swap(request.headers_mut(), &mut call.head.headers);
    tell_program(request.headers_mut(), peer, call);
    *request.method_mut() = call.head.method.clone();
    *request.uri_mut() = call.head.uri.clone();
    let authority = &call.reading.authority;
    let request = match call.proto {
        Proto::H2 => crate::outbound::as_h2(request, authority, "http"),
        Proto::Http1 | Proto::Tcp => crate::outbound::with_host(request, authority),
    };
    let request = if asked.is_some() {
        ask(request, call)
    } else {
        request
    };
    call.exchange.upstream = Some(target.program);
    let flow = call.exchange.flow.clone();
    let sent = call
        .local
        .programs
        .send(target.program, call.proto, request, &call.local.metrics);
    // It may be revoked before its answer begins.
    let sent = standing.hold(std::pin::pin!(sent)).await;
    let (response, held) = sent.map_err(|denial| blame(denial, flow.as_deref()))?;
    answer(call, response, Some(held), asked, Some(standing))
}

pub(crate) fn ask(request: Request<RequestBody>, call: &Call) -> Request<RequestBody> {
    let (mut head, body) = request.into_parts();
    websocket::ask(&mut head, call.proto, &call.local.random);
    Request::from_parts(head, body)
}

/// What the program learns of its caller, in headers that nobody else can set.
fn tell_program(headers: &mut http::HeaderMap, peer: &Peer, call: &Call) {
    if let Some(caller) = &peer.caller {
        headers.insert(CALLER, caller.clone());
    }
    if let Some(user) = &call.user {
        headers.insert(USER, printable(&user.id));
    }
}

/// A subject may be any text (RFC 7519 §4.1.2): what no header may hold is percent-encoded.
pub(crate) fn printable(text: &str) -> HeaderValue {
    use std::fmt::Write as _;
    if text
        .bytes()
        .all(|byte| matches!(byte, 0x21..=0x7e) && byte != b'%')
        && let Ok(value) = HeaderValue::from_str(text)
    {
        return value;
    }
    let mut encoded = String::with_capacity(text.len() * 3);
    for byte in text.bytes() {
        if matches!(byte, 0x21..=0x7e) && byte != b'%' {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    HeaderValue::try_from(encoded).unwrap_or(HeaderValue::from_static("%"))
}

/// An upstream that broke off because our caller's body did is not at fault.
pub(crate) fn blame(denial: Denial, flow: Option<&crate::request::response_body::Flow>) -> Denial {
    match (denial, flow) {
        (Denial::Upstream(_), Some(flow)) if flow.over().is_some() => {
            Denial::BodyTooLarge(flow.over().unwrap_or_default())
        }
        (Denial::Upstream(_), Some(flow)) if flow.broken() => Denial::BodyBroken,
        (denial, _) => denial,
    }
}

/// Gives an upstream's answer the form that goes to our caller.
pub(crate) fn answer(
    call: &mut Call,
    response: Response<Incoming>,
    held: Option<crate::upstream::Returned>,
    asked: Option<websocket::Asked>,
    standing: Option<Rc<Standing>>,
) -> Result<Answer, Denial> {
    let (mut head, incoming) = response.into_parts();
    headers::strip_answer(&mut head.headers);
    let version = call.head.version;
    if let Some(asked) = asked
        && websocket::agreed(head.status, call.proto)
    {
        let upstream = head
            .extensions
            .remove::<hyper::upgrade::OnUpgrade>()
            .ok_or(Upstream::Protocol)?;
        websocket::answer(&mut head, version, &asked);
        call.exchange.answered(101);
        let response = Response::from_parts(head, AnswerBody::ours(bytes::Bytes::new()));
        return Ok(Answer {
            response,
            switched: Some(Switched {
                asked,
                upstream,
                held,
                standing,
            }),
        });
    }
    // A switch that nobody asked for would turn the rest of the connection into something undecided.
    if head.status == http::StatusCode::SWITCHING_PROTOCOLS {
        return Err(Upstream::Protocol.into());
    }
    head.version = version;
    head.extensions.clear();
    call.exchange.answered(head.status.as_u16());
    let body = AnswerBody::upstream(incoming, held, standing);
    Ok(Answer {
        response: Response::from_parts(head, body),
        switched: None,
    })
}

/// From here the request is over when its body, or its tunnel, is.
pub(crate) fn conclude(answer: Answer, call: Call) -> Response<AnswerBody> {
    let exchange = call.exchange;
    match answer.switched {
        Some(Switched {
            asked,
            upstream,
            held,
            standing,
        }) => {
            websocket::tunnel(
                asked,
                upstream,
                websocket::Kept {
                    exchange,
                    held,
                    standing,
                },
            );
            answer.response
        }
        None => answer.response.map(|body| body.concludes(exchange)),
    }
}
