//! How often: GCRA, on governor. Time is an argument.
//!
//! A limiter remembers at most about 100,000 subjects; those who have their whole share again are forgotten. Should
//! more than that be busy at once (somebody making up identities or addresses), then subjects share 16,384 overflow
//! buckets by hash, each with the same rate, until there is room again: memory stays bounded, a crowd of strangers
//! slows itself down, and nobody is let through unlimited. Which subjects meet in a bucket cannot be foreseen from
//! outside, for the hash is keyed anew in every process.

mod registry;

use std::{
    cell::Cell,
    hash::{BuildHasher as _, Hash, Hasher as _, RandomState},
    net::IpAddr,
    num::NonZeroU32,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use governor::{
    Quota, RateLimiter, clock::Clock, middleware::NoOpMiddleware, state::keyed::DashMapStateStore,
};
use merlon_config::{
    resource::{LimitKey, RateLimitRule},
    snapshot::Attached,
};

pub use registry::LimitRegistry;

use crate::{
    authn::User,
    principal::{PeerFacts, Principal},
};

/// How many subjects a limiter remembers before it begins to share buckets.
const MAX_SUBJECTS: usize = 100_000;
/// How many buckets are shared then. A power of two.
const OVERFLOW_BUCKETS: u64 = 1 << 14;
/// After how many checks it is looked whether there are too many.
const LOOK_EVERY: u64 = 256;

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

/// One rule and what it has counted, shared by all workers.
pub struct Limiter {
    rule: Attached<RateLimitRule>,
    origin: Instant,
    hasher: RandomState,
    cells: RateLimiter<u64, DashMapStateStore<u64>, GivenTime, NoOpMiddleware<Duration>>,
    most: usize,
    checks: AtomicU64,
    crowded: AtomicBool,
    /// When the idle were last forgotten, in milliseconds since `origin`: looking through all of them has its price.
    swept: AtomicU64,
}

impl Limiter {
    fn new(
        rule: Attached<RateLimitRule>,
        origin: Instant,
        hasher: RandomState,
        most: usize,
    ) -> Self {
        GIVEN.set(Duration::ZERO);
        Self {
            cells: RateLimiter::new(quota(&rule.spec), DashMapStateStore::default(), GivenTime),
            rule,
            origin,
            hasher,
            most,
            checks: AtomicU64::new(0),
            crowded: AtomicBool::new(false),
            swept: AtomicU64::new(0),
        }
    }

    /// The rule, with the resource that it came from.
    pub fn rule(&self) -> &Attached<RateLimitRule> {
        &self.rule
    }

    /// Takes one from the share of `subject`.
    ///
    /// # Errors
    /// When it is spent: how long to wait.
    pub fn check(&self, subject: &LimitSubject<'_>, now: Instant) -> Result<(), RetryAfter> {
        let now = now.saturating_duration_since(self.origin);
        GIVEN.set(now);
        if self.checks.fetch_add(1, Ordering::Relaxed) % LOOK_EVERY == LOOK_EVERY - 1 {
            self.make_room(now);
        }
        let mut key = self.key(subject);
        if self.crowded.load(Ordering::Relaxed) {
            key &= OVERFLOW_BUCKETS - 1;
        }
        self.cells
            .check_key(&key)
            .map_err(|until| RetryAfter(until.wait_time_from(now)))
    }

    fn make_room(&self, now: Duration) {
        const AT_MOST_EVERY_MS: u64 = 1_000;
        let mut crowded = self.cells.len() >= self.most;
        if crowded || self.crowded.load(Ordering::Relaxed) {
            let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
            let swept = self.swept.load(Ordering::Relaxed);
            let due = now.saturating_sub(swept) >= AT_MOST_EVERY_MS;
            let mine = due
                && self
                    .swept
                    .compare_exchange(swept, now, Ordering::Relaxed, Ordering::Relaxed)
                    .is_ok();
            if mine {
                self.cells.retain_recent();
            }
            crowded = self.cells.len() >= self.most;
        }
        self.crowded.store(crowded, Ordering::Relaxed);
    }

    /// What is counted apart, as a keyed hash (SipHash). Two subjects meeting by chance is one in 2⁶⁴.
    fn key(&self, subject: &LimitSubject<'_>) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        match (self.rule.spec.per, subject.user) {
            (LimitKey::Address, _) => address(subject.address).hash(&mut hasher),
            (LimitKey::User, Some(user)) => user.id.hash(&mut hasher),
            (LimitKey::Principal | LimitKey::User, _) => match subject.peer.principal() {
                Principal::Workload(id) => id.hash(&mut hasher),
                // All strangers together are not one principal: the address tells them apart.
                Principal::Anonymous => address(subject.address).hash(&mut hasher),
            },
        }
        hasher.finish()
    }
}

impl std::fmt::Debug for Limiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Limiter")
            .field("rule", &self.rule)
            .field("subjects", &self.cells.len())
            .finish_non_exhaustive()
    }
}

/// An IPv4 address as it is; of an IPv6 address the first 64 bits, for the rest is its owner's to choose.
fn address(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6((ip.to_bits() >> 64 << 64).into()),
        v4 => v4,
    }
}

fn quota(rule: &RateLimitRule) -> Quota {
    // Resources are checked when they are read; a rate of nothing would still be one at a time.
    let requests = NonZeroU32::new(rule.rate.requests).unwrap_or(NonZeroU32::MIN);
    let burst = rule.burst.and_then(NonZeroU32::new).unwrap_or(requests);
    let each = rule.rate.per.0 / requests.get();
    Quota::with_period(each.max(Duration::from_nanos(1)))
        .unwrap_or_else(|| Quota::per_second(requests))
        .allow_burst(burst)
}

thread_local! {
    /// The moment that [`Limiter::check`] was given, since the registry's origin.
    static GIVEN: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Governor asks a clock; this one only knows what it was told on this thread.
#[derive(Debug, Clone, Copy)]
struct GivenTime;

impl Clock for GivenTime {
    type Instant = Duration;

    fn now(&self) -> Duration {
        GIVEN.get()
    }
}

#[cfg(test)]
mod tests;
