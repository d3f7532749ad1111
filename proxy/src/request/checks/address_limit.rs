//! Rate limits per client address. They apply before any signature is verified: verifying costs more than sending.

use merlon_config::resource::LimitKey;
use merlon_policy::limit::{LimitSubject, Limiter};

use super::stage::{Routed, Screened};
use crate::protocol::denial::Denial;

/// # Errors
/// [`Denial::RateLimited`].
pub(crate) fn address_limit(routed: Routed<'_>) -> Result<Screened<'_>, Denial> {
    for limiter in &routed.target.service.limiters {
        if limiter.rule().spec.per == LimitKey::Address {
            let subject = LimitSubject {
                peer: &routed.target.peer,
                address: routed.call.address.ip(),
                user: None,
            };
            take(limiter, &subject, routed.call.clock)?;
        }
    }
    Ok(routed.screened())
}

pub(super) fn take(
    limiter: &Limiter,
    subject: &LimitSubject<'_>,
    now: std::time::Instant,
) -> Result<(), Denial> {
    limiter
        .check(subject, now)
        .map_err(|wait| Denial::RateLimited {
            limit: limiter.rule().spec.name.as_str().into(),
            retry_after: wait.seconds(),
        })
}
