//! Opaque TCP to the local program.

use std::{rc::Rc, sync::Arc, time::Instant};

use http::Version;
use merlon_config::{name::ServiceName, resource::AppProtocol};
use merlon_policy::{
    decision::Decision,
    facts::{RequestFacts, RequestKind, TcpFacts},
    limit::LimitSubject,
};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::server::TlsStream;

use crate::{
    downstream::{connection::OpenConnection, peer::Peer},
    protocol::{
        denial::Denial,
        peer_header::{Claim, Proto, read_claim},
        tls_session::TlsSession,
    },
    request::{
        exchange::Exchange,
        open_permit::{AuthzQuery, OpenPermit, QueryKind},
        target::Target,
        tunnel::relay,
    },
    telemetry::{
        decision_log::{DecisionFacts, Outcome, RecordedDecision},
        metrics::{Direction, Transport},
    },
    upstream::dial,
};

/// Serves a tunnel from another proxy.
pub(crate) async fn accept(peer: &Rc<Peer>, mut stream: TlsStream<TcpStream>) {
    let local = &peer.local;
    let _open = OpenConnection::new(local, Direction::Inbound, Transport::MeshTcp);
    let mut exchange = Exchange::begin(
        local,
        Direction::Inbound,
        peer.id.clone(),
        peer.address,
        Version::HTTP_2,
    );
    exchange.protocol = "tcp";
    let limits = &local.shared.limits;
    let admitted = match timeout(limits.preamble_timeout, read_claim(&mut stream)).await {
        Ok(Some(claim)) => admit(peer, &claim, &mut exchange),
        _ => Err(Denial::NoRoute("the tunnel names no destination".into())),
    };
    let (target, open_permit) = match admitted {
        Ok(admitted) => admitted,
        Err(denial) => return exchange.refuse(denial),
    };
    exchange.upstream = Some(target.program);
    let program = match dial::plain(
        target.program,
        &local.shared.listeners,
        limits,
        &local.metrics,
    )
    .await
    {
        Ok(program) => program,
        Err(error) => return exchange.refuse(Denial::Upstream(error)),
    };
    tokio::select! {
        () = relay(stream, program, Some(&open_permit), exchange) => {}
        () = local.identity_gone() => {}
    }
}

/// Serves a plain-text connection to a port of opaque TCP, as `Anonymous`.
pub(crate) async fn serve_plain_text(
    peer: &Rc<Peer>,
    stream: TcpStream,
    service: ServiceName,
    port: u16,
) {
    let local = &peer.local;
    let _open = OpenConnection::new(local, Direction::Inbound, Transport::Plain);
    let mut exchange = Exchange::begin(
        local,
        Direction::Inbound,
        peer.id.clone(),
        peer.address,
        Version::HTTP_11,
    );
    exchange.protocol = "tcp";
    let claim = Claim {
        service,
        port,
        proto: Proto::Tcp,
    };
    let (target, open_permit) = match admit(peer, &claim, &mut exchange) {
        Ok(admitted) => admitted,
        Err(denial) => return exchange.refuse(denial),
    };
    exchange.upstream = Some(target.program);
    match dial::plain(
        target.program,
        &local.shared.listeners,
        &local.shared.limits,
        &local.metrics,
    )
    .await
    {
        Ok(program) => relay(stream, program, Some(&open_permit), exchange).await,
        Err(error) => exchange.refuse(Denial::Upstream(error)),
    }
}

/// The checks of a request that apply to opaque TCP.
pub(crate) fn admit(
    peer: &Peer,
    claim: &Claim,
    exchange: &mut Exchange,
) -> Result<(Rc<Target>, Rc<OpenPermit>), Denial> {
    let local = &peer.local;
    let current = local.current();
    exchange.current = Some(Rc::clone(&current));
    let snapshot = current.snapshot().ok_or(Denial::Unconfigured)?;
    let target = Target::claimed(snapshot, &claim.service, claim.port, &peer.principal)
        .filter(|target| target.protocol == AppProtocol::Tcp)
        .ok_or(Denial::NoRoute(
            "the tunnel names no service of this workload".into(),
        ))?;
    let target = Rc::new(target);
    exchange.dst = Some(Rc::clone(&target.name));
    peer.check_dialled_port(&target)?;
    let open_permit = local.register(OpenPermit::new(AuthzQuery {
        target: Rc::clone(&target),
        kind: QueryKind::Tcp,
        address: peer.address.ip(),
        user: None,
        session: peer.session.clone(),
    }));
    let subject = LimitSubject {
        peer: &target.peer,
        address: peer.address.ip(),
        user: None,
    };
    let now = Instant::now();
    for limiter in &target.service.limiters {
        limiter
            .check(&subject, now)
            .map_err(|wait| Denial::RateLimited {
                limit: limiter.rule().spec.name.as_str().into(),
                retry_after: wait.seconds(),
            })?;
    }
    let facts = RequestFacts {
        kind: RequestKind::Tcp(TcpFacts::default()),
        source_ip: peer.address.ip(),
        client_ip: peer.address.ip(),
        port: target.port,
        now: exchange.at,
        user: None,
        tls: peer.session.as_deref().map(TlsSession::facts),
    };
    let decision = target.decide(&facts);
    let recorded = target
        .service
        .policy
        .record(&target.peer, &facts, &decision);
    local.shared.decisions.record(RecordedDecision {
        id: exchange.decision_id,
        evidence: Some(DecisionFacts {
            facts: recorded,
            service: Arc::clone(&target.service.state),
            mesh: Arc::clone(&target.service.mesh),
            snapshot: snapshot.version.clone(),
        }),
        asked: None,
        outcome: match &decision {
            Decision::Permit(permit) => Outcome::permitted(permit.policy()),
            // The refusal is recorded when the connection is closed.
            Decision::Deny(_) => Outcome::default(),
        },
    });
    exchange.permit = Some(decision.into_result()?);
    Ok((target, open_permit))
}
