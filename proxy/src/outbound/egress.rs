//! Calls to hosts that no resource names: forwarded unchanged and recorded, or refused; never to a meshed workload.

use std::net::SocketAddr;

use merlon_config::resource::OutboundMode;

use crate::{
    protocol::{
        convert::{as_h2, with_host},
        denial::{Denial, Upstream},
        peer_header::Proto,
        websocket,
    },
    request::{
        call::Call,
        forwarded_response::{ForwardedResponse, attribute_upstream_error, downstream_response},
    },
};

/// Forwards a request to an external host, if the mesh allows it.
///
/// # Errors
/// [`Denial::Egress`], or the failure of the upstream.
pub(crate) async fn forward(
    call: &mut Call,
    host: &str,
    port: u16,
) -> Result<ForwardedResponse, Denial> {
    let destination = format!("{host}:{port}");
    let snapshot = call.current.snapshot().ok_or(Denial::Unconfigured)?;
    let allowed = snapshot.mesh.outbound != OutboundMode::Deny;
    let seen = &call.local.shared.egress;
    seen.called(&destination, allowed, call.exchange.at);
    call.exchange.dst = Some(destination.as_str().into());
    if !allowed {
        return Err(Denial::Egress(destination.into()));
    }
    let addresses = call.local.resolver.look_up(host).await?;
    let address = addresses
        .first()
        .map(|ip| SocketAddr::new(*ip, port))
        .ok_or(Upstream::Dns)?;
    // Meshed workloads are reached only by name and over mesh TLS.
    let meshed = snapshot
        .destinations
        .values()
        .flat_map(|one| &one.endpoints)
        .any(|one| one.address == address || one.is_at(address));
    if meshed {
        return Err(Denial::Egress(destination.into()));
    }
    let body = call.stream();
    let (request, upgrade) = call.outgoing(body);
    let authority = call.parsed.authority.clone();
    let request = match call.proto {
        Proto::H2 => as_h2(request, &authority, "http"),
        Proto::Http1 | Proto::Tcp => with_host(request, &authority),
    };
    let request = match upgrade {
        Some(_) => websocket::convert_request(request, call.proto, &call.local.random),
        None => request,
    };
    call.exchange.upstream = Some(address);
    let progress = call.exchange.progress.clone();
    let sent = call
        .local
        .programs
        .send(address, call.proto, request, &call.local.metrics)
        .await;
    let (response, pooled) =
        sent.map_err(|denial| attribute_upstream_error(denial, progress.as_deref()))?;
    downstream_response(call, response, Some(pooled), upgrade, None)
}
