//! Opaque bytes: a tunnel from a local address through mutual TLS to the program that is meant.
//!
//! On the wire a tunnel is ALPN `merlon-tcp/1`, a length in two bytes, and a [`Claim`] as text; then both directions
//! are the program's own, each ended by itself.

use std::{
    future::poll_fn,
    io,
    mem::MaybeUninit,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use http::Version;
use merlon_certs::MERLON_TCP;
use merlon_config::{
    name::ServiceName,
    resource::{AppProtocol, OutboundListener},
    snapshot::Destination,
};
use merlon_policy::{
    decision::Decision,
    facts::{RequestFacts, RequestKind, TcpFacts},
    limit::LimitSubject,
    principal::Principal,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::TcpStream,
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::server::TlsStream;

use super::{intercepted, resolve::Fixed};
use crate::{
    downstream::{
        connection,
        listener::{self, Open},
        listeners::{self, Wanted},
    },
    inbound::Peer,
    outbound,
    protocol::{
        denial::{Denial, Upstream},
        peer_header::{Claim, MAX_LENGTH, Proto},
        tls_session::Session,
    },
    request::{
        checks::{authorize::decide, route::Target},
        exchange::Exchange,
        open_permit::{Asked, Leash, Standing, What},
    },
    state::Snapshot,
    telemetry::{
        decision_log::{Evidence, Outcome, RecordedDecision},
        metrics::{Direction, Transport},
    },
    upstream::dial,
    worker::Local,
};

/// How long the preamble may take to come.
const PREAMBLE: Duration = Duration::from_secs(5);

/// A tunnel from another proxy.
pub(crate) async fn inbound(peer: &Rc<Peer>, mut stream: TlsStream<TcpStream>) {
    let local = &peer.local;
    let _open = Open::new(local, Direction::Inbound, Transport::MeshTcp);
    let mut exchange = Exchange::begin(
        local,
        Direction::Inbound,
        peer.id.clone(),
        peer.address,
        Version::HTTP_2,
    );
    exchange.protocol = "tcp";
    let admitted = match timeout(PREAMBLE, read_claim(&mut stream)).await {
        Ok(Some(claim)) => admit(peer, &claim, &mut exchange),
        _ => Err(Denial::NoRoute("the tunnel does not say where to".into())),
    };
    let (target, standing) = match admitted {
        Ok(admitted) => admitted,
        Err(denial) => return exchange.refused(denial),
    };
    exchange.upstream = Some(target.program);
    let program = match dial::connect(target.program, &local.metrics).await {
        Ok(program) => program,
        Err(error) => return exchange.refused(Denial::Upstream(error)),
    };
    tokio::select! {
        () = carry(stream, program, Some(&standing), exchange) => {}
        () = local.identity_gone() => {}
    }
}

pub(crate) async fn carry(
    downstream: impl AsyncRead + AsyncWrite + Unpin,
    upstream: impl AsyncRead + AsyncWrite + Unpin,
    standing: Option<&Standing>,
    mut exchange: Box<Exchange>,
) {
    let unheld = Leash::default();
    let leash = standing.map_or(&unheld, |standing| &standing.leash);
    let (copied, whole) = copy_both(downstream, upstream, leash).await;
    exchange.received(copied.received);
    exchange.bytes_out = copied.sent;
    if let Some(denial) = standing.and_then(Standing::over) {
        exchange.ended(denial);
    }
    exchange.conclude(!whole);
}

/// A connection in plain to a port of opaque bytes, from somebody who may be `Anonymous`.
pub(crate) async fn plain(peer: &Rc<Peer>, stream: TcpStream, service: ServiceName, port: u16) {
    let local = &peer.local;
    let _open = Open::new(local, Direction::Inbound, Transport::Plain);
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
    let (target, standing) = match admit(peer, &claim, &mut exchange) {
        Ok(admitted) => admitted,
        Err(denial) => return exchange.refused(denial),
    };
    exchange.upstream = Some(target.program);
    match dial::connect(target.program, &local.metrics).await {
        Ok(program) => carry(stream, program, Some(&standing), exchange).await,
        Err(error) => exchange.refused(Denial::Upstream(error)),
    }
}

async fn read_claim(stream: &mut (impl AsyncRead + Unpin)) -> Option<Claim> {
    let length = usize::from(stream.read_u16().await.ok()?);
    if length > MAX_LENGTH {
        return None;
    }
    let mut text = vec![0; length];
    stream.read_exact(&mut text).await.ok()?;
    Claim::parse(&text).filter(|claim| claim.proto == Proto::Tcp)
}

/// The preamble of a tunnel, as it goes over the wire.
fn preamble(claim: &Claim) -> Vec<u8> {
    let text = claim.to_string();
    let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

/// The same checks as a request's, as far as opaque bytes have what they ask for.
fn admit(
    peer: &Peer,
    claim: &Claim,
    exchange: &mut Exchange,
) -> Result<(Rc<Target>, Rc<Standing>), Denial> {
    let local = &peer.local;
    let current = local.current();
    exchange.current = Some(Rc::clone(&current));
    let snapshot = current.snapshot().ok_or(Denial::Unconfigured)?;
    let target = Target::claimed(snapshot, &claim.service, claim.port, &peer.principal)
        .filter(|target| target.protocol == AppProtocol::Tcp)
        .ok_or(Denial::NoRoute(
            "no service of this workload is meant".into(),
        ))?;
    let target = Rc::new(target);
    exchange.dst = Some(Rc::clone(&target.name));
    peer.dials(&target)?;
    let standing = local.register(Standing::new(Asked {
        target: Rc::clone(&target),
        what: What::Tcp,
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
        tls: peer.session.as_deref().map(Session::facts),
    };
    let decision = decide(&target, &facts);
    let recorded = target
        .service
        .policy
        .record(&target.peer, &facts, &decision);
    local.shared.decisions.record(RecordedDecision {
        id: exchange.decision_id,
        evidence: Some(Evidence {
            facts: recorded,
            service: Arc::clone(&target.service.state),
            mesh: Arc::clone(&target.service.mesh),
            snapshot: snapshot.version.clone(),
        }),
        asked: None,
        outcome: match &decision {
            Decision::Permit(permit) => Outcome::permitted(permit.policy()),
            // The refusal that follows tells it.
            Decision::Deny(_) => Outcome::default(),
        },
    });
    exchange.permit = Some(decision.into_result()?);
    Ok((target, standing))
}

/// Where the workload's `outbound` says.
impl Wanted for OutboundListener {
    const KIND: &'static str = "listeners of the workload";

    fn all(snapshot: &Snapshot) -> &[Self] {
        &snapshot.workload.outbound
    }

    fn name(&self) -> String {
        format!(
            "`outbound` to {}:{} ({})",
            self.service, self.port, self.listen
        )
    }

    fn open(&self, local: &Rc<Local>) -> Result<JoinHandle<()>, String> {
        let (socket, part) = listeners::socket(local, self.listen, &self.name())?;
        let (local, to) = (Rc::clone(local), Rc::new(self.clone()));
        Ok(tokio::task::spawn_local(async move {
            // Dropped in the order of their making turned round: the address is let go of after its socket.
            let (_part, socket) = (part, socket);
            let connection =
                |local, stream, address| outbound(local, stream, address, Rc::clone(&to));
            listener::serve(&local, &socket, connection).await;
        }))
    }
}

/// A connection of the own program to a local address that leads to one port of a Service.
async fn outbound(
    local: Rc<Local>,
    stream: TcpStream,
    address: SocketAddr,
    to: Rc<OutboundListener>,
) {
    let own = local.current().own();
    let mut exchange = Exchange::begin(&local, Direction::Outbound, own, address, Version::HTTP_11);
    exchange.protocol = "tcp";
    exchange.current = Some(local.current());
    let fixed = Fixed {
        service: to.service.clone(),
        port: to.port,
        workload: None,
        called: None,
    };
    lead(&local, stream, address, fixed, exchange).await;
}

/// Leads a connection of the own program to one port of a Service, as requests or as bytes.
pub(crate) async fn lead(
    local: &Rc<Local>,
    stream: TcpStream,
    address: SocketAddr,
    fixed: Fixed,
    mut exchange: Box<Exchange>,
) {
    exchange.dst = Some(format!("{}:{}", fixed.service, fixed.port).into());
    let destination = match intercepted::destination(local, &fixed).await {
        Ok(destination) => destination,
        Err(denial) => return exchange.refused(denial),
    };
    let mut ports = destination.ports.iter();
    match ports.find(|port| port.port == fixed.port) {
        None => exchange.refused(Denial::NoRoute("the service has no such port".into())),
        Some(port) if port.protocol == AppProtocol::Tcp => {
            let _open = Open::new(local, Direction::Outbound, Transport::Plain);
            tunnel(local, stream, &destination, &fixed, exchange).await;
        }
        Some(_) => {
            exchange.forget();
            let mut peer = Peer::new(local, Direction::Outbound, address, Principal::Anonymous);
            peer.fixed = Some(fixed);
            connection::serve_plain(local, stream, Rc::new(peer), outbound::serve).await;
        }
    }
}

async fn tunnel(
    local: &Rc<Local>,
    stream: TcpStream,
    destination: &Destination,
    to: &Fixed,
    mut exchange: Box<Exchange>,
) {
    let claim = Claim {
        service: to.service.clone(),
        port: to.port,
        proto: Proto::Tcp,
    };
    let mut tried = Vec::new();
    let mut last = Denial::Upstream(Upstream::NoEndpoint);
    while tried.len() < 3
        && let Some(endpoint) = local.peers.choose(local, (destination, to.port), &tried)
    {
        tried.push(endpoint);
        let address = intercepted::dial_at(endpoint, to.port);
        exchange.upstream = Some(address);
        let result = match &endpoint.identity {
            None => match dial::connect(address, &local.metrics).await {
                Ok(upstream) => return carry(stream, upstream, None, exchange).await,
                Err(error) => error,
            },
            Some(expected) => {
                let Some(identity) = local.identity() else {
                    return exchange.refused(Denial::Unconfigured);
                };
                match dial::mesh(address, expected, &identity, MERLON_TCP, &local.metrics).await {
                    Ok(mut upstream) => {
                        if upstream.write_all(&preamble(&claim)).await.is_err()
                            || upstream.flush().await.is_err()
                        {
                            return exchange.refused(Denial::Upstream(Upstream::Reset));
                        }
                        return carry(stream, upstream, None, exchange).await;
                    }
                    Err(error) => error,
                }
            }
        };
        local.peers.avoid(endpoint, to.port);
        last = Denial::Upstream(result);
    }
    exchange.refused(last);
}

/// How many bytes went which way.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Copied {
    /// From downstream.
    pub(crate) received: u64,
    /// To downstream.
    pub(crate) sent: u64,
}

/// Copies both ways until both have ended, each by itself; or until the leash is pulled. Whether both ended well.
pub(crate) async fn copy_both(
    mut downstream: impl AsyncRead + AsyncWrite + Unpin,
    mut upstream: impl AsyncRead + AsyncWrite + Unpin,
    leash: &Leash,
) -> (Copied, bool) {
    let (mut up, mut down) = (Pipe::default(), Pipe::default());
    let copy = poll_fn(|cx| {
        let one = up.poll(cx, Pin::new(&mut downstream), Pin::new(&mut upstream))?;
        let other = down.poll(cx, Pin::new(&mut upstream), Pin::new(&mut downstream))?;
        if one.is_ready() && other.is_ready() {
            Poll::Ready(io::Result::Ok(()))
        } else {
            Poll::Pending
        }
    });
    let whole = tokio::select! {
        result = copy => result.is_ok(),
        () = leash.pulled() => false,
    };
    (
        Copied {
            received: up.copied,
            sent: down.copied,
        },
        whole,
    )
}

/// One direction. Holds memory only while bytes wait to be written: an idle tunnel has none.
#[derive(Debug, Default)]
struct Pipe {
    waiting: Vec<u8>,
    written: usize,
    copied: u64,
    unflushed: bool,
    ended: bool,
    closed: bool,
}

/// What one read takes at most.
const PIECE: usize = 16 << 10;

impl Pipe {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        mut from: Pin<&mut impl AsyncRead>,
        mut to: Pin<&mut impl AsyncWrite>,
    ) -> Poll<io::Result<()>> {
        // Bounded, so that one busy tunnel leaves the worker to others.
        for _ in 0..32 {
            if self.closed {
                return Poll::Ready(Ok(()));
            }
            while self.written < self.waiting.len() {
                let rest = self.waiting.get(self.written..).unwrap_or_default();
                match ready!(to.as_mut().poll_write(cx, rest))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    written => self.written += written,
                }
            }
            self.waiting = Vec::new();
            self.written = 0;
            if self.ended {
                ready!(to.as_mut().poll_shutdown(cx))?;
                self.closed = true;
                return Poll::Ready(Ok(()));
            }
            let mut space = [const { MaybeUninit::uninit() }; PIECE];
            let mut buffer = ReadBuf::uninit(&mut space);
            match from.as_mut().poll_read(cx, &mut buffer) {
                Poll::Ready(result) => result?,
                Poll::Pending => {
                    if std::mem::take(&mut self.unflushed)
                        && to.as_mut().poll_flush(cx)?.is_pending()
                    {
                        self.unflushed = true;
                    }
                    return Poll::Pending;
                }
            }
            let read = buffer.filled();
            if read.is_empty() {
                self.ended = true;
                continue;
            }
            self.copied += read.len() as u64;
            self.unflushed = true;
            let written = match to.as_mut().poll_write(cx, read) {
                Poll::Ready(result) => result?,
                Poll::Pending => 0,
            };
            self.waiting = read.get(written..).unwrap_or_default().to_vec();
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
