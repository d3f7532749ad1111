//! Resolves the host of a request to a destination.

use std::{rc::Rc, sync::Arc};

use merlon_config::{
    name::ServiceName,
    snapshot::{AddressState, Destination},
};

use crate::{
    downstream::peer::Peer,
    protocol::{
        denial::Denial,
        host::{is_mesh_only, mesh_name, split_port},
    },
    request::{call::Call, worker_context::WorkerContext},
    state::{destinations::LookupError, snapshot::Snapshot},
    upstream::route::{Route, ServicePort},
};

/// Where a request goes.
#[derive(Debug)]
pub(crate) enum Resolution {
    /// To a service of the mesh.
    Mesh(Rc<Route>),
    /// To a host that no resource names.
    Outside { host: String, port: u16 },
}

/// The other Services on a workload's address that was called, from the current snapshot: the connection may be older.
fn other_services(snapshot: &Snapshot, service_port: &ServicePort) -> Vec<ServiceName> {
    let called = service_port
        .called
        .filter(|_| service_port.workload.is_some());
    let found = called.and_then(|address| snapshot.addresses.get(&address));
    let Some(AddressState::Service { service, also, .. }) = found else {
        return Vec::new();
    };
    let all = || std::iter::once(service).chain(also);
    match all().any(|one| *one == service_port.service) {
        true => all()
            .filter(|one| **one != service_port.service)
            .cloned()
            .collect(),
        false => Vec::new(),
    }
}

/// Resolves the destination of a request from the local program.
///
/// # Errors
/// [`Denial::NoRoute`] for a mesh name without a service, [`Denial::Unconfigured`] or [`Denial::LookupUnavailable`]
/// when the lookup is not possible.
pub(crate) async fn resolve(peer: &Peer, call: &Call) -> Result<Resolution, Denial> {
    let local = &peer.local;
    let snapshot = call.current.snapshot().ok_or(Denial::Unconfigured)?;
    let host = call.parsed.authority.as_str();
    let service_port;
    let key = match &peer.service_port {
        Some(ServicePort {
            service,
            port,
            workload,
            ..
        }) => {
            service_port = match workload {
                Some(workload) => format!("{service}:{port}@{workload}"),
                None => format!("{service}:{port}"),
            };
            &service_port
        }
        None => host,
    };
    if let Some(route) = local.names.find(key, call.current.generation) {
        return Ok(Resolution::Mesh(route));
    }
    if let Some(service_port) = &peer.service_port {
        let destination = pinned_destination(local, service_port).await?;
        let mut route = Route::to(destination, Some(service_port.port))?;
        route.also = other_services(snapshot, service_port);
        let route = Rc::new(route);
        if local.current().generation == call.current.generation {
            local.names.insert(key, &route);
        }
        return Ok(Resolution::Mesh(route));
    }
    let (name, port, certain) = {
        let (host, port) = split_port(host).ok_or(Denial::Authority("the host is malformed"))?;
        let own = &snapshot.identity().workload().namespace;
        (mesh_name(host, own), port, is_mesh_only(host))
    };
    let destination = match name {
        Some(name) => match destination(local, &name).await {
            Ok(destination) => Some(destination),
            // `example.com` could be the service `example` in the namespace `com`.
            Err(Denial::NoRoute(_)) if !certain => None,
            Err(denial) => return Err(denial),
        },
        None => None,
    };
    let Some(destination) = destination else {
        let (host, port) = split_port(host).ok_or(Denial::Authority("the host is malformed"))?;
        return Ok(Resolution::Outside {
            host: host.to_owned(),
            port: port.unwrap_or(80),
        });
    };
    let route = Rc::new(Route::to(destination, port)?);
    // Cached only if the snapshot is still the one that this request started with.
    if local.current().generation == call.current.generation {
        local.names.insert(key, &route);
    }
    Ok(Resolution::Mesh(route))
}

/// A destination of the mesh, from the snapshot or, on first use, from the control plane.
///
/// # Errors
/// [`Denial::NoRoute`] when no service has this name, [`Denial::Unconfigured`] or [`Denial::LookupUnavailable`] when
/// the lookup is not possible.
pub(crate) async fn destination(
    local: &WorkerContext,
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
            LookupError::Unknown => Denial::NoRoute("no service of the mesh has this name".into()),
            LookupError::Unavailable => Denial::LookupUnavailable,
        })
}

/// The destination of a connection to one port of a Service. If a workload was called at its own address, it is that
/// workload alone.
///
/// # Errors
/// As [`destination`].
pub(crate) async fn pinned_destination(
    local: &WorkerContext,
    service_port: &ServicePort,
) -> Result<Arc<Destination>, Denial> {
    let found = destination(local, &service_port.service).await?;
    let Some(workload) = service_port.workload else {
        return Ok(found);
    };
    let mut only = (*found).clone();
    only.endpoints
        .retain(|endpoint| endpoint.address.ip() == workload);
    Ok(Arc::new(only))
}
