//! Rate limits per caller or user. They apply after authentication, so that no caller can use up another's quota.

use merlon_config::resource::LimitKey;
use merlon_policy::limit::LimitSubject;

use super::{
    address_limit::take,
    stage::{Authenticated, WithinQuota},
};
use crate::protocol::denial::Denial;

/// # Errors
/// [`Denial::RateLimited`].
pub(crate) fn quota(authenticated: Authenticated<'_>) -> Result<WithinQuota<'_>, Denial> {
    let call = &*authenticated.call;
    for limiter in &authenticated.target.service.limiters {
        if limiter.rule().spec.per != LimitKey::Address {
            let subject = LimitSubject {
                peer: &authenticated.target.peer,
                address: call.address.ip(),
                user: call.user.as_deref(),
            };
            take(limiter, &subject, call.clock)?;
        }
    }
    Ok(authenticated.within_quota())
}
