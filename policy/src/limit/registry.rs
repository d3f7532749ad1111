//! Keeps limiters across snapshots.

use std::{
    collections::HashMap,
    hash::RandomState,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Instant,
};

use merlon_config::{
    name::{ResourceName, ServiceName},
    snapshot::InboundService,
};

use super::limiter::{Limiter, MAX_SUBJECTS};

/// Keeps limiters across snapshots: an unchanged rule keeps its counters.
///
/// Used once per service and snapshot, never on the request path.
#[derive(Debug)]
pub struct LimitRegistry {
    origin: Instant,
    hasher: RandomState,
    /// By service, resource and rule name. A limiter is dropped with the last snapshot that uses it.
    pub(super) known: Mutex<HashMap<(ServiceName, ServiceName, ResourceName), Weak<Limiter>>>,
}

impl LimitRegistry {
    /// An empty registry; `now` is the origin of its time.
    pub fn new(now: Instant) -> Self {
        Self {
            origin: now,
            hasher: RandomState::new(),
            known: Mutex::default(),
        }
    }

    /// The limiters of a service, in the order of its rules. The limiter of an unchanged rule is reused.
    pub fn limiters(&self, service: &InboundService) -> Vec<Arc<Limiter>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, limiter| limiter.strong_count() > 0);
        service
            .limits
            .iter()
            .map(|rule| {
                let key = (
                    service.name.clone(),
                    rule.from.clone(),
                    rule.spec.name.clone(),
                );
                let same = known
                    .get(&key)
                    .and_then(Weak::upgrade)
                    .filter(|limiter| limiter.rule() == rule);
                same.unwrap_or_else(|| {
                    let limiter =
                        Limiter::new(rule.clone(), self.origin, self.hasher.clone(), MAX_SUBJECTS);
                    let limiter = Arc::new(limiter);
                    known.insert(key, Arc::downgrade(&limiter));
                    limiter
                })
            })
            .collect()
    }
}
