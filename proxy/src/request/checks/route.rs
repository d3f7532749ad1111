//! Which service a request is for: found from what this proxy serves, never from what a caller would like.

use std::rc::Rc;

use merlon_config::resource::AppProtocol;

use super::stage::Routed;
use crate::{
    protocol::denial::Denial,
    request::{call::Call, target::Target},
};

/// Sends a call to its target.
///
/// # Errors
/// [`Denial::Unconfigured`] without a snapshot, [`Denial::NoRoute`] when nothing here is meant.
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
