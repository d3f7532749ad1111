//! Whom a program means by the host it names.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
};

use http::HeaderValue;
use merlon_config::{
    name::{Namespace, ServiceName},
    resource::AppProtocol,
    snapshot::{AddressState, Destination},
};

use super::intercepted;
use crate::{
    inbound::Peer,
    protocol::{
        denial::Denial,
        peer_header::{Claim, Proto, parse_port},
    },
    request::checks::stage::Call,
    state::{Snapshot, destinations::AskError},
    worker::Local,
};

/// One port of a Service, and nothing else, whatever a request says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fixed {
    pub(crate) service: ServiceName,
    pub(crate) port: u16,
    /// The one workload that was called at its own address.
    pub(crate) workload: Option<IpAddr>,
    /// The address that was called, where rules of interception told.
    pub(crate) called: Option<SocketAddr>,
}

/// Where a request goes.
#[derive(Debug)]
pub(crate) enum Whither {
    /// To a service of the mesh.
    Mesh(Rc<Route>),
    /// To a host that no resource names.
    Outside { host: String, port: u16 },
}

/// A port of a destination, with all that a request to it needs.
#[derive(Debug)]
pub(crate) struct Route {
    /// Service and port, for the log.
    pub(crate) name: Rc<str>,
    pub(crate) destination: Arc<Destination>,
    /// Other Services that are called by the same call.
    pub(crate) also: Vec<ServiceName>,
    /// The Service's port.
    pub(crate) port: u16,
    protocol: AppProtocol,
    http1: HeaderValue,
    h2: HeaderValue,
}

impl Route {
    /// What the program at the other end gets when ours speaks `spoken`.
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
    /// [`Denial::NoRoute`] when it has no such port, or one that does not speak HTTP.
    pub(crate) fn to(destination: Arc<Destination>, port: Option<u16>) -> Result<Self, Denial> {
        const HTTP: u16 = 80;
        let ports = &destination.ports;
        let found = match (port, ports.as_slice()) {
            (None, [only]) => Some(only),
            (port, _) => ports.iter().find(|one| one.port == port.unwrap_or(HTTP)),
        };
        let found = found.ok_or(Denial::NoRoute("the service has no such port".into()))?;
        if found.protocol == AppProtocol::Tcp {
            return Err(Denial::NoRoute("this port does not speak HTTP".into()));
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

/// Hosts that were looked up in this snapshot.
#[derive(Debug, Default)]
pub(crate) struct Names {
    generation: Cell<u64>,
    routes: RefCell<HashMap<String, Rc<Route>, foldhash::fast::RandomState>>,
}

/// What else is called by a call to one workload's own address, as it is known now: a connection may be older.
fn also(snapshot: &Snapshot, fixed: &Fixed) -> Vec<ServiceName> {
    let called = fixed.called.filter(|_| fixed.workload.is_some());
    let found = called.and_then(|address| snapshot.addresses.get(&address));
    let Some(AddressState::Service { service, also, .. }) = found else {
        return Vec::new();
    };
    let all = || std::iter::once(service).chain(also);
    match all().any(|one| *one == fixed.service) {
        true => all()
            .filter(|one| **one != fixed.service)
            .cloned()
            .collect(),
        false => Vec::new(),
    }
}

/// Hosts that one worker remembers: a program that makes names up gets no memory for it.
const REMEMBERED: usize = 1_024;

impl Names {
    fn find(&self, host: &str, generation: u64) -> Option<Rc<Route>> {
        let mut routes = self.routes.borrow_mut();
        if self.generation.replace(generation) != generation {
            routes.clear();
            return None;
        }
        routes.get(host).map(Rc::clone)
    }

    fn remember(&self, host: &str, route: &Rc<Route>) {
        let mut routes = self.routes.borrow_mut();
        if routes.len() >= REMEMBERED {
            routes.clear();
        }
        routes.insert(host.to_owned(), Rc::clone(route));
    }
}

/// Finds out where a request of the own program goes.
///
/// # Errors
/// [`Denial::NoRoute`] for a name of the mesh that nothing has, [`Denial::Unconfigured`] or [`Denial::Unasked`] when
/// nobody can tell.
pub(crate) async fn whither(peer: &Peer, call: &Call) -> Result<Whither, Denial> {
    let local = &peer.local;
    let snapshot = call.current.snapshot().ok_or(Denial::Unconfigured)?;
    let host = call.reading.authority.as_str();
    let fixed;
    let key = match &peer.fixed {
        Some(Fixed {
            service,
            port,
            workload,
            ..
        }) => {
            fixed = match workload {
                Some(workload) => format!("{service}:{port}@{workload}"),
                None => format!("{service}:{port}"),
            };
            &fixed
        }
        None => host,
    };
    if let Some(route) = local.names.find(key, call.current.generation) {
        return Ok(Whither::Mesh(route));
    }
    if let Some(fixed) = &peer.fixed {
        let destination = intercepted::destination(local, fixed).await?;
        let route = Rc::new(Route {
            also: also(snapshot, fixed),
            ..Route::to(destination, Some(fixed.port))?
        });
        if local.current().generation == call.current.generation {
            local.names.remember(key, &route);
        }
        return Ok(Whither::Mesh(route));
    }
    let (name, port, certain) = {
        let (host, port) = split_port(host).ok_or(Denial::Authority("the host is malformed"))?;
        let own = &snapshot.identity().workload().namespace;
        (mesh_name(host, own), port, is_certain(host))
    };
    let destination = match name {
        Some(name) => match destination(local, &name).await {
            Ok(destination) => Some(destination),
            // `example.com` could have been the service `example` of the namespace `com`.
            Err(Denial::NoRoute(_)) if !certain => None,
            Err(denial) => return Err(denial),
        },
        None => None,
    };
    let Some(destination) = destination else {
        let (host, port) = split_port(host).ok_or(Denial::Authority("the host is malformed"))?;
        return Ok(Whither::Outside {
            host: host.to_owned(),
            port: port.unwrap_or(80),
        });
    };
    let route = Rc::new(Route::to(destination, port)?);
    // Remembered for the snapshot that holds it now, which may be newer than the one this request began with.
    if local.current().generation == call.current.generation {
        local.names.remember(key, &route);
    }
    Ok(Whither::Mesh(route))
}

/// A destination of the mesh, asked for when it is used for the first time.
///
/// # Errors
/// [`Denial::NoRoute`] when there is none of this name, [`Denial::Unconfigured`] or [`Denial::Unasked`] when nobody can
/// tell.
pub(crate) async fn destination(
    local: &Local,
    name: &ServiceName,
) -> Result<Arc<Destination>, Denial> {
    let current = local.current();
    let snapshot = current.snapshot().ok_or(Denial::Unconfigured)?;
    if let Some(destination) = snapshot.destinations.get(name) {
        return Ok(Arc::clone(destination));
    }
    local
        .shared
        .destinations
        .ask(name.clone())
        .await
        .map_err(|error| match error {
            AskError::Unknown => Denial::NoRoute("the mesh has no service of this name".into()),
            AskError::Unavailable => Denial::Unasked,
        })
}

/// Host and port of an authority.
pub(crate) fn split_port(authority: &str) -> Option<(&str, Option<u16>)> {
    let end = authority.rfind(']').map_or(0, |bracket| bracket + 1);
    match authority.get(end..)?.rfind(':') {
        None => Some((authority, None)),
        Some(colon) => {
            let (host, port) = authority.split_at_checked(end + colon)?;
            Some((host, Some(parse_port(port.strip_prefix(':')?)?)))
        }
    }
}

/// The service that a host can mean: `name`, `name.namespace`, either with `.svc` or `.svc.cluster.local` behind it.
pub(crate) fn mesh_name(host: &str, own: &Namespace) -> Option<ServiceName> {
    let short = strip_cluster(host);
    match short.split_once('.') {
        None => Some(ServiceName {
            namespace: own.clone(),
            name: short.parse().ok()?,
        }),
        Some((name, namespace)) => {
            // Digits alone are an address, not a name.
            if short
                .bytes()
                .all(|byte| byte.is_ascii_digit() || byte == b'.')
            {
                return None;
            }
            Some(ServiceName {
                namespace: namespace.parse().ok()?,
                name: name.parse().ok()?,
            })
        }
    }
}

fn strip_cluster(host: &str) -> &str {
    let host = host.strip_suffix('.').unwrap_or(host);
    host.strip_suffix(".svc.cluster.local")
        .or_else(|| host.strip_suffix(".svc"))
        .unwrap_or(host)
}

/// Whether nothing outside the mesh can be meant.
fn is_certain(host: &str) -> bool {
    !host.contains('.') || strip_cluster(host).len() < host.trim_end_matches('.').len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meant(host: &str) -> Option<String> {
        mesh_name(host, &"shop".parse().unwrap()).map(|name| name.to_string())
    }

    #[test]
    fn the_usual_forms_of_a_service_name_mean_it() {
        for host in [
            "orders",
            "orders.shop",
            "orders.shop.svc",
            "orders.shop.svc.cluster.local",
            "orders.shop.",
        ] {
            assert_eq!(meant(host).as_deref(), Some("shop/orders"), "{host}");
        }
        assert_eq!(meant("db.data").as_deref(), Some("data/db"));
        for host in ["127.0.0.1", "10.0", "api.example.com", "[::1]", "a_b"] {
            assert_eq!(meant(host), None, "{host}");
        }
    }

    #[test]
    fn only_a_name_with_a_foreign_form_can_be_outside() {
        assert!(is_certain("orders"));
        assert!(is_certain("orders.shop.svc"));
        assert!(!is_certain("example.com"));
    }

    #[test]
    fn a_port_is_split_off_only_where_it_is_one() {
        assert_eq!(split_port("a:80"), Some(("a", Some(80))));
        assert_eq!(split_port("a"), Some(("a", None)));
        assert_eq!(split_port("[::1]"), Some(("[::1]", None)));
        assert_eq!(split_port("[::1]:8080"), Some(("[::1]", Some(8080))));
        assert_eq!(split_port("a:0"), None);
    }
}
