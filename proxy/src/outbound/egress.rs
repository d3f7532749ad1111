//! Calls to hosts that no resource names: passed on as they are and recorded, or refused; never to a meshed workload.

use std::{
    cell::RefCell,
    net::{IpAddr, SocketAddr},
    rc::Rc,
};

use hickory_resolver::TokioResolver;
use merlon_config::resource::OutboundMode;

use super::{as_h2, outgoing, stream, with_host};
use crate::{
    inbound::{self, Answer},
    protocol::{
        denial::{Denial, Upstream},
        peer_header::Proto,
        websocket,
    },
    request::checks::stage::Call,
};

/// Looks names up as the host's own configuration says, without the C library's modules.
#[derive(Default)]
pub(crate) struct Resolver {
    resolver: RefCell<Option<Rc<TokioResolver>>>,
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Resolver")
    }
}

impl Resolver {
    async fn look_up(&self, host: &str) -> Result<Vec<IpAddr>, Upstream> {
        if let Ok(address) = host.trim_start_matches('[').trim_end_matches(']').parse() {
            return Ok(vec![address]);
        }
        let known = self.resolver.borrow().clone();
        let resolver = match known {
            Some(resolver) => resolver,
            None => {
                let built = TokioResolver::builder_tokio().and_then(|builder| builder.build());
                let built = Rc::new(built.map_err(|error| {
                    tracing::warn!(%error, "names cannot be resolved");
                    Upstream::Dns
                })?);
                *self.resolver.borrow_mut() = Some(Rc::clone(&built));
                built
            }
        };
        let found = resolver.lookup_ip(host).await.map_err(|error| {
            tracing::debug!(%error, host, "a name does not resolve");
            Upstream::Dns
        })?;
        Ok(found.iter().collect())
    }
}

/// Passes a request on to the outside, when the mesh lets it.
///
/// # Errors
/// [`Denial::Egress`], or what went wrong upstream.
pub(crate) async fn pass(call: &mut Call, host: &str, port: u16) -> Result<Answer, Denial> {
    let destination = format!("{host}:{port}");
    let snapshot = call.current.snapshot().ok_or(Denial::Unconfigured)?;
    let passes = snapshot.mesh.outbound != OutboundMode::Deny;
    let seen = &call.local.shared.outside;
    seen.called(&destination, passes, call.exchange.at);
    call.exchange.dst = Some(destination.into());
    if !passes {
        return Err(Denial::Egress);
    }
    let addresses = call.local.resolver.look_up(host).await?;
    let address = addresses
        .first()
        .map(|ip| SocketAddr::new(*ip, port))
        .ok_or(Upstream::Dns)?;
    // What is meshed is reached by its name and with proof, or not at all; our own listeners would only loop.
    let meshed = snapshot
        .destinations
        .values()
        .flat_map(|one| &one.endpoints)
        .any(|one| one.address == address || one.is_at(address));
    if meshed || call.address.ip() == address.ip() && Some(address.port()) == call.own_port {
        return Err(Denial::Egress);
    }
    let body = stream(call);
    let (request, asked) = outgoing(call, body);
    let authority = call.reading.authority.clone();
    let request = match call.proto {
        Proto::H2 => as_h2(request, &authority, "http"),
        Proto::Http1 | Proto::Tcp => with_host(request, &authority),
    };
    let request = if asked.is_some() {
        let (mut head, body) = request.into_parts();
        websocket::ask(&mut head, call.proto, &call.local.random);
        http::Request::from_parts(head, body)
    } else {
        request
    };
    call.exchange.upstream = Some(address);
    let flow = call.exchange.flow.clone();
    let sent = call
        .local
        .programs
        .send(address, call.proto, request, &call.local.metrics)
        .await;
    let (response, held) = sent.map_err(|denial| inbound::blame(denial, flow.as_deref()))?;
    inbound::answer(call, response, Some(held), asked, None)
}
