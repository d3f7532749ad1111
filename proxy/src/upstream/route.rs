//! The route to one port of a destination.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
};

use http::HeaderValue;
use merlon_config::{name::ServiceName, resource::AppProtocol, snapshot::Destination};

use crate::protocol::{
    denial::Denial,
    peer_header::{Claim, Proto},
};

/// One port of a Service that a connection is bound to, regardless of its requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServicePort {
    pub(crate) service: ServiceName,
    pub(crate) port: u16,
    /// The workload, if it was called at its own address.
    pub(crate) workload: Option<IpAddr>,
    /// The original destination, if the connection was redirected.
    pub(crate) called: Option<SocketAddr>,
}

/// A port of a destination, with everything that a request to it needs.
#[derive(Debug)]
pub(crate) struct Route {
    /// Service and port, for the log.
    pub(crate) name: Rc<str>,
    pub(crate) destination: Arc<Destination>,
    /// Other Services on the same called address.
    pub(crate) also: Vec<ServiceName>,
    /// The Service's port.
    pub(crate) port: u16,
    protocol: AppProtocol,
    http1: HeaderValue,
    h2: HeaderValue,
}

impl Route {
    /// The protocol for the destination program when the local program speaks `spoken`.
    pub(crate) fn proto(&self, spoken: Proto) -> Proto {
        match self.protocol {
            AppProtocol::H2c | AppProtocol::Grpc => Proto::H2,
            AppProtocol::Http | AppProtocol::Tcp => spoken,
        }
    }

    /// The `merlon-peer` header.
    pub(crate) fn claim(&self, proto: Proto) -> &HeaderValue {
        if proto == Proto::H2 {
            &self.h2
        } else {
            &self.http1
        }
    }

    /// The route to a destination's port.
    ///
    /// # Errors
    /// [`Denial::NoRoute`] when it has no such port, or when the port is not an HTTP port.
    pub(crate) fn to(destination: Arc<Destination>, port: Option<u16>) -> Result<Self, Denial> {
        const HTTP: u16 = 80;
        let ports = &destination.ports;
        let found = match (port, ports.as_slice()) {
            (None, [only]) => Some(only),
            (port, _) => ports.iter().find(|one| one.port == port.unwrap_or(HTTP)),
        };
        let found = found.ok_or(Denial::NoRoute("the service has no such port".into()))?;
        if found.protocol == AppProtocol::Tcp {
            return Err(Denial::NoRoute("this port is not an HTTP port".into()));
        }
        let claim = |proto| {
            let claim = Claim {
                service: destination.name.clone(),
                port: found.port,
                proto,
            };
            HeaderValue::try_from(claim.to_string())
                .map_err(|_| Denial::NoRoute("the service has no such port".into()))
        };
        Ok(Self {
            name: format!("{}:{}", destination.name, found.port).into(),
            port: found.port,
            protocol: found.protocol,
            http1: claim(Proto::Http1)?,
            h2: claim(Proto::H2)?,
            destination,
            also: Vec::new(),
        })
    }
}

/// The routes of hosts that were resolved in the current snapshot.
#[derive(Debug, Default)]
pub(crate) struct RouteCache {
    generation: Cell<u64>,
    routes: RefCell<HashMap<String, Rc<Route>, foldhash::fast::RandomState>>,
}

/// Maximum number of cached hosts per worker, so that a program with many names cannot exhaust memory.
pub(crate) const MAX_ENTRIES: usize = 1_024;

impl RouteCache {
    pub(crate) fn find(&self, host: &str, generation: u64) -> Option<Rc<Route>> {
        let mut routes = self.routes.borrow_mut();
        if self.generation.replace(generation) != generation {
            routes.clear();
            return None;
        }
        routes.get(host).map(Rc::clone)
    }

    pub(crate) fn insert(&self, host: &str, route: &Rc<Route>) {
        let mut routes = self.routes.borrow_mut();
        if routes.len() >= MAX_ENTRIES {
            routes.clear();
        }
        routes.insert(host.to_owned(), Rc::clone(route));
    }
}
