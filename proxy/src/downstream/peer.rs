//! The peer of a connection.

use std::{cell::RefCell, net::SocketAddr, rc::Rc, time::Instant};

use http::{HeaderValue, Version, request::Parts};
use hyper::body::{Body as _, Incoming};
use merlon_policy::{principal::Principal, validate::RouteMatch};

use crate::{
    protocol::{
        denial::Denial, peer_header::Proto, problem::is_grpc, request_head::ParsedHead,
        tls_session::TlsSession,
    },
    request::{
        call::Call,
        exchange::Exchange,
        open_requests::OpenRequests,
        target::{Target, TargetCache},
        worker_context::{CurrentSnapshot, WorkerContext},
    },
    telemetry::metrics::Direction,
    upstream::route::ServicePort,
};

/// The peer of a connection and its resolved targets.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) local: Rc<WorkerContext>,
    pub(crate) direction: Direction,
    pub(crate) address: SocketAddr,
    /// The port of the proxy's own listener.
    pub(crate) own_port: Option<u16>,
    pub(crate) principal: Principal,
    /// The SPIFFE ID, for the log.
    pub(crate) id: Option<Rc<str>>,
    /// The SPIFFE ID, for the program.
    pub(crate) caller: Option<HeaderValue>,
    /// The SNI of a TLS client.
    pub(crate) server_name: Option<Box<str>>,
    /// The properties of its TLS connection, if it uses TLS.
    pub(crate) session: Option<Rc<TlsSession>>,
    /// The port of a Service that the connection is bound to.
    pub(crate) service_port: Option<ServicePort>,
    /// The program's port that a client without claims called.
    pub(crate) program_port: Option<u16>,
    /// The program's port that was dialled, if the connection was redirected. The service that a caller claims must
    /// listen on it: a NetworkPolicy that allows one port must not open another.
    pub(crate) dialled: Option<u16>,
    pub(crate) targets: RefCell<TargetCache>,
    /// The open requests on the connection.
    pub(crate) open_requests: Rc<OpenRequests>,
}

impl Peer {
    pub(crate) fn new(
        local: &Rc<WorkerContext>,
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
            service_port: None,
            program_port: None,
            dialled: None,
            targets: RefCell::default(),
            open_requests: OpenRequests::new(),
        }
    }

    /// Whether the peer has a verified mesh identity. Only then refusals name the policy.
    pub(crate) fn is_meshed(&self) -> bool {
        matches!(self.principal, Principal::Workload(_))
    }

    /// Checks that a target listens on the port that the caller dialled.
    ///
    /// # Errors
    /// [`Denial::NoRoute`] when it listens on another port.
    pub(crate) fn check_dialled_port(&self, target: &Target) -> Result<(), Denial> {
        match self.dialled {
            Some(port) if port != target.program.port() => Err(Denial::NoRoute(
                "the requested service does not listen on the port that was called".into(),
            )),
            _ => Ok(()),
        }
    }

    /// Creates the call for a request of this peer. `exchange` keeps the snapshot that decides on it.
    pub(crate) fn call(
        &self,
        mut exchange: Box<Exchange>,
        current: Rc<CurrentSnapshot>,
        (head, parsed): (Parts, ParsedHead),
        body: Incoming,
    ) -> Call {
        exchange.current = Some(Rc::clone(&current));
        Call {
            local: Rc::clone(&self.local),
            current,
            address: self.address,
            session: self.session.clone(),
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
            parsed,
            exchange,
        }
    }

    /// Whether the peer is a gateway of the mesh.
    pub(crate) fn is_gateway(&self) -> bool {
        let Principal::Workload(id) = &self.principal else {
            return false;
        };
        let current = self.local.current();
        let snapshot = current.snapshot();
        snapshot.is_some_and(|snapshot| snapshot.mesh.gateways.contains(id))
    }
}
