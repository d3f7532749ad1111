//! The request path: from another proxy's connection to the local program, in the order of processing.

pub(crate) mod intercepted;
pub(crate) mod tcp;

use std::{convert::Infallible, net::SocketAddr, rc::Rc};

use http::{HeaderMap, HeaderValue, Request, Response};
use hyper::body::Incoming;
use merlon_certs::{MERLON_H2, MeshTls};
use merlon_policy::principal::Principal;
use tokio::net::TcpStream;

use crate::{
    downstream::{
        connection::{self, PrefixedStream},
        peer::Peer,
        respond::{Refused, respond},
    },
    protocol::{
        convert,
        denial::Denial,
        headers::{self, CALLER, USER, printable},
        peer_header::{self, Proto},
        request_head,
        tls_session::TlsSession,
        websocket,
    },
    request::{
        call::Call,
        checks::{
            address_limit::address_limit,
            authenticate::authenticate,
            authorize::{authorize, record_refusal},
            quota::quota,
            route::route,
            stage::Admitted,
            validate::validate,
        },
        exchange::Exchange,
        forwarded_response::{ForwardedResponse, attribute_upstream_error, downstream_response},
        response_body::ResponseBody,
        target::Target,
        worker_context::WorkerContext,
    },
    telemetry::metrics::{Direction, Transport},
};

/// Serves a connection to the inbound listener: only mesh TLS, unless the proxy runs without identities.
pub(crate) async fn connection(local: Rc<WorkerContext>, stream: TcpStream, address: SocketAddr) {
    handle_redirected(local, stream, address, None).await;
}

/// As [`connection()`], for a connection that was redirected from a port of the program.
pub(crate) async fn handle_redirected(
    local: Rc<WorkerContext>,
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
    // Without a current identity the connection is closed; there is no fallback.
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
    let session = TlsSession::from_connection(tls, leaf.dns_names);
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
            () = connection::serve_h2(&local, PrefixedStream::new(stream), Transport::MeshH2, peer, serve) => {}
            () = local.identity_gone() => {}
        }
    } else {
        tcp::accept(&peer, stream).await;
    }
}

/// Serves one request.
pub(crate) async fn serve(
    peer: Rc<Peer>,
    request: Request<Incoming>,
    broken: Option<Denial>,
) -> Result<Response<ResponseBody>, Infallible> {
    serve_with(peer, request, broken, forward).await
}

/// As [`serve`], with another last step. Only an [`Admitted`] request reaches it.
pub(crate) async fn serve_with(
    peer: Rc<Peer>,
    request: Request<Incoming>,
    broken: Option<Denial>,
    forward: impl AsyncFnOnce(Admitted<'_>, &Peer) -> Result<ForwardedResponse, Denial>,
) -> Result<Response<ResponseBody>, Infallible> {
    respond(&peer, request, broken, async |request, exchange| {
        let Some(_in_flight) = peer.local.start_request() else {
            return Err((Denial::Overload, exchange));
        };
        let (mut call, claim) = receive(&peer, request, exchange)?;
        let target = target(&peer, &mut call, claim.as_ref());
        let outcome = match checks(&mut call, target.clone(), &peer).await {
            Ok(admitted) if admitted.call.question.is_some() => Ok(ForwardedResponse::send_body()),
            Ok(admitted) => forward(admitted, &peer).await,
            Err(denial) => Err(denial),
        };
        conclude(outcome, call, target)
    })
    .await
}

/// Reads the head of a request, and refuses one that does not have exactly one meaning.
///
/// Returns the call, and the other proxy's claim.
fn receive(
    peer: &Peer,
    request: Request<Incoming>,
    mut exchange: Box<Exchange>,
) -> Result<(Call, Option<HeaderValue>), Refused> {
    let (mut head, body) = request.into_parts();
    // Two values are ambiguous, so the request is refused. Values from clients outside the mesh are removed anyway.
    if peer.is_meshed() && peer_header::is_repeated(&head.headers) {
        let denial = Denial::Header("`merlon-peer` is repeated");
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
    let parsed = match request_head::read(&mut head) {
        Ok(parsed) => parsed,
        Err(denial) => return Err((denial, exchange)),
    };
    // Headers that only Merlon may set are removed before anything reads them, and set again after the checks.
    match peer.is_gateway() {
        true => headers::strip_reserved_except_forwarded(&mut head.headers),
        false => headers::strip_reserved(&mut head.headers),
    }
    exchange.set_parsed_head(&mut head, &parsed.authority);
    // A browser reuses a connection for other hosts (RFC 9113 §9.1.1), and the certificate was for one.
    let named = peer.server_name.as_deref();
    if named.is_some_and(|name| name != parsed.authority.host()) {
        return Err((Denial::Misdirected, exchange));
    }
    let mut call = peer.call(exchange, peer.local.current(), (head, parsed), body);
    call.question = question;
    Ok((call, claim))
}

/// The requested service: the one that the other proxy claims, if this workload has it. Other peers cannot make claims.
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
            Target::inferred(snapshot, call.parsed.authority.as_str(), &peer.principal).map(Rc::new)
        }
    }
}

/// Runs every check in order. Each takes the proof of the previous one; `forward` takes the last.
async fn checks<'c>(
    call: &'c mut Call,
    target: Option<Rc<Target>>,
    peer: &Peer,
) -> Result<Admitted<'c>, Denial> {
    if let Some(target) = &target {
        peer.check_dialled_port(target)?;
    }
    let routed = route(call, target)?;
    // Before any signature is verified: verifying costs more than sending.
    let screened = address_limit(routed)?;
    let authenticated = authenticate(screened).await?;
    // After the caller is authenticated, so that one caller cannot use up the quota of another.
    let within_quota = quota(authenticated)?;
    let permitted = authorize(within_quota)?;
    // Last, because no body is read from a caller that is not permitted to send it.
    validate(permitted).await
}

/// Returns the response to the caller, and records a refusal.
fn conclude(
    outcome: Result<ForwardedResponse, Denial>,
    call: Call,
    target: Option<Rc<Target>>,
) -> Result<Response<ResponseBody>, Refused> {
    match outcome {
        // It was only another proxy's question; the request itself follows.
        Ok(forwarded) if call.question.is_some() => {
            call.exchange.discard();
            Ok(forwarded.response)
        }
        Ok(forwarded) => Ok(forwarded.conclude(call)),
        Err(denial) => {
            if let Some(target) = target.filter(|_| !denial.refusal().recorded_elsewhere) {
                record_refusal(&call, &target);
            }
            Err((denial, call.exchange))
        }
    }
}

/// Sets the headers that identify the caller to the program; only Merlon can set them.
fn set_caller_headers(headers: &mut HeaderMap, peer: &Peer, call: &Call) {
    if let Some(caller) = &peer.caller {
        headers.insert(CALLER, caller.clone());
    }
    if let Some(user) = &call.user {
        headers.insert(USER, printable(&user.id));
    }
}

/// Sends an admitted request to the program.
async fn forward(admitted: Admitted<'_>, peer: &Peer) -> Result<ForwardedResponse, Denial> {
    let Admitted {
        call,
        target,
        body,
        open_permit,
        ..
    } = admitted;
    let (mut request, upgrade) = call.outgoing(body);
    set_caller_headers(request.headers_mut(), peer, call);
    let authority = &call.parsed.authority;
    let request = match call.proto {
        Proto::H2 => convert::as_h2(request, authority, "http"),
        Proto::Http1 | Proto::Tcp => convert::with_host(request, authority),
    };
    let request = match upgrade {
        Some(_) => websocket::convert_request(request, call.proto, &call.local.random),
        None => request,
    };
    call.exchange.upstream = Some(target.program);
    let progress = call.exchange.progress.clone();
    let sent = call
        .local
        .programs
        .send(target.program, call.proto, request, &call.local.metrics);
    // The permit may be revoked before the response starts.
    let sent = open_permit.until_revoked(std::pin::pin!(sent)).await;
    let (response, pooled) =
        sent.map_err(|denial| attribute_upstream_error(denial, progress.as_deref()))?;
    downstream_response(call, response, Some(pooled), upgrade, Some(open_permit))
}
