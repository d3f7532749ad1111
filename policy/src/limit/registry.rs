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

use super::{Limiter, MAX_SUBJECTS};

/// Keeps limiters across snapshots: a rule that did not change goes on counting.
///
/// Asked once per service and snapshot, never on the request path.
#[derive(Debug)]
pub struct LimitRegistry {
    origin: Instant,
    hasher: RandomState,
    /// By service, resource and the rule's name; gone with the last snapshot that uses it.
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

    /// The limiters of a service, in the order of its rules: those of before where the rule is the same.
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
                    .filter(|limiter| limiter.rule == *rule);
                same.unwrap_or_else(|| {
                    let fresh =
                        Limiter::new(rule.clone(), self.origin, self.hasher.clone(), MAX_SUBJECTS);
                    let fresh = Arc::new(fresh);
                    known.insert(key, Arc::downgrade(&fresh));
                    fresh
                })
            })
            .collect()
    }
}
