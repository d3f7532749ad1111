//! The lookups of workers that wait for the control plane.

use std::{collections::HashMap, time::Duration};

use merlon_config::snapshot::AddressState;
use tokio::{sync::oneshot, time::Instant};

use super::subscriber::Subscriber;
use crate::state::{
    destinations::{LookupError, LookupKey, LookupRequest, LookupResult},
    snapshot::Snapshot,
};

/// How long the absence of a service is cached.
const ABSENT: Duration = Duration::from_secs(2);

/// Maximum number of cached absent services; further ones are looked up again.
const ABSENT_NAMES: usize = 1_024;

/// How many external addresses are unsubscribed if the limit of subscriptions is reached.
const UNSUBSCRIBED_AT_ONCE: usize = 64;

/// Lookups without an answer, and what is known to be absent.
#[derive(Debug, Default)]
pub(super) struct Lookups {
    waiting: HashMap<LookupKey, Vec<oneshot::Sender<LookupResult>>>,
    absent: HashMap<LookupKey, Instant>,
}

impl Lookups {
    /// Answers a lookup from the snapshot, or subscribes to its name and keeps it.
    pub(super) fn begin(
        &mut self,
        request: LookupRequest,
        snapshot: Option<&Snapshot>,
        subscriber: Option<&mut Subscriber>,
    ) {
        let LookupRequest { key, reply } = request;
        if let Some(found) = snapshot.and_then(|snapshot| key.find(snapshot)) {
            // A send fails only if the request has timed out.
            let _ = reply.send(Ok(found));
            return;
        }
        if self
            .absent
            .get(&key)
            .is_some_and(|until| *until > Instant::now())
        {
            let _ = reply.send(Err(LookupError::Unknown));
            return;
        }
        if let Some(subscriber) = subscriber
            && !subscriber.subscribe_to(&key)
        {
            // Unsubscribe from external addresses, of which programs may call many; the next call looks them up again.
            let addresses = snapshot.map(|snapshot| snapshot.addresses.iter());
            let outside = addresses.into_iter().flatten();
            let outside = outside.filter(|(_, state)| **state == AddressState::Outside);
            for (address, _) in outside.take(UNSUBSCRIBED_AT_ONCE) {
                subscriber.unsubscribe_from(&LookupKey::Address(*address));
            }
            if !subscriber.subscribe_to(&key) {
                tracing::warn!(destination = %key, "subscriptions.limit_reached");
                let _ = reply.send(Err(LookupError::Unavailable));
                return;
            }
        }
        let waiting = self.waiting.entry(key).or_default();
        waiting.retain(|waiting| !waiting.is_closed());
        waiting.push(reply);
        if self.waiting.len() > ABSENT_NAMES {
            self.waiting
                .retain(|_, waiting| waiting.iter().any(|waiting| !waiting.is_closed()));
        }
    }

    /// What lookups wait for.
    pub(super) fn waiting(&self) -> impl Iterator<Item = &LookupKey> {
        self.waiting.keys()
    }

    /// Records that the control plane has no such service or address.
    pub(super) fn absent(&mut self, key: LookupKey) {
        self.answer(&key, &Err(LookupError::Unknown));
        if self.absent.len() >= ABSENT_NAMES {
            self.absent.retain(|_, until| *until > Instant::now());
        }
        if self.absent.len() < ABSENT_NAMES {
            self.absent.insert(key, Instant::now() + ABSENT);
        }
    }

    /// Answers all lookups of what a new snapshot has.
    pub(super) fn answer_from(&mut self, snapshot: &Snapshot) {
        let waiting = self.waiting.keys();
        let now_there = waiting.filter_map(|key| Some((key.clone(), key.find(snapshot)?)));
        for (key, found) in now_there.collect::<Vec<_>>() {
            self.answer(&key, &Ok(found));
        }
    }

    fn answer(&mut self, key: &LookupKey, result: &LookupResult) {
        for waiting in self.waiting.remove(key).into_iter().flatten() {
            // Fails if the request has timed out.
            let _ = waiting.send(result.clone());
        }
    }
}
