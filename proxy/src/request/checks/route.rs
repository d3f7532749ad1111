//! The service that a request is for: only services that this proxy serves are considered.

use std::rc::Rc;

use merlon_config::resource::AppProtocol;

use super::stage::Routed;
use crate::{
    protocol::denial::Denial,
    request::{call::Call, target::Target},
};

/// Assigns a call to its target.
///
/// # Errors
/// [`Denial::Unconfigured`] without a snapshot, [`Denial::NoRoute`] without a target or for a port of opaque TCP.
pub(crate) fn route(call: &mut Call, target: Option<Rc<Target>>) -> Result<Routed<'_>, Denial> {
    if call.current.snapshot().is_none() {
        return Err(Denial::Unconfigured);
    }
    let target = target.ok_or(Denial::NoRoute(
        "the request names no service of this workload".into(),
    ))?;
    if target.protocol == AppProtocol::Tcp {
        return Err(Denial::NoRoute("this port is not an HTTP port".into()));
    }
    call.exchange.dst = Some(Rc::clone(&target.name));
    call.route = target
        .service
        .policy
        .route(call.method(), call.head.uri.path());
    if let Some(template) = target.service.policy.template(&call.route) {
        call.exchange.route = Some(template.to_owned());
    }
    Ok(Routed::to(call, target))
}
