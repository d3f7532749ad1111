//! One limiter: GCRA with bounded memory.

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

use crate::{
    authn::User,
    principal::{PeerFacts, Principal},
};

/// Number of subjects that a limiter tracks before it starts to share buckets.
pub(super) const MAX_SUBJECTS: usize = 100_000;
/// Number of shared buckets. A power of two.
const OVERFLOW_BUCKETS: u64 = 1 << 14;
/// Number of checks between two checks for too many subjects.
const CHECKS_PER_EVICTION: u64 = 256;

/// The subject that a limit counts.
#[derive(Debug, Clone, Copy)]
pub struct LimitSubject<'a> {
    /// The peer that TLS authenticated.
    pub peer: &'a PeerFacts,
    /// The peer address of the socket.
    pub address: IpAddr,
    /// The user of the verified token.
    pub user: Option<&'a User>,
}

/// The limit is exceeded; the time until the next request is allowed.
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

/// One rule and its counters, shared by all workers.
pub struct Limiter {
    rule: Attached<RateLimitRule>,
    origin: Instant,
    hasher: RandomState,
    pub(super) buckets:
        RateLimiter<u64, DashMapStateStore<u64>, ThreadTime, NoOpMiddleware<Duration>>,
    max_subjects: usize,
    checks: AtomicU64,
    pub(super) overflowing: AtomicBool,
    /// Time of the last eviction, in milliseconds since `origin`. Evictions are rare because they scan all buckets.
    evicted_at: AtomicU64,
}

impl Limiter {
    pub(super) fn new(
        rule: Attached<RateLimitRule>,
        origin: Instant,
        hasher: RandomState,
        max_subjects: usize,
    ) -> Self {
        NOW.set(Duration::ZERO);
        Self {
            buckets: RateLimiter::new(quota(&rule.spec), DashMapStateStore::default(), ThreadTime),
            rule,
            origin,
            hasher,
            max_subjects,
            checks: AtomicU64::new(0),
            overflowing: AtomicBool::new(false),
            evicted_at: AtomicU64::new(0),
        }
    }

    /// The rule, with the resource that it came from.
    pub fn rule(&self) -> &Attached<RateLimitRule> {
        &self.rule
    }

    /// Counts one request of `subject`.
    ///
    /// # Errors
    /// The time to wait, when the limit is exceeded.
    pub fn check(&self, subject: &LimitSubject<'_>, now: Instant) -> Result<(), RetryAfter> {
        let now = now.saturating_duration_since(self.origin);
        NOW.set(now);
        if self.checks.fetch_add(1, Ordering::Relaxed) % CHECKS_PER_EVICTION
            == CHECKS_PER_EVICTION - 1
        {
            self.evict_idle(now);
        }
        let mut key = self.key(subject);
        if self.overflowing.load(Ordering::Relaxed) {
            key &= OVERFLOW_BUCKETS - 1;
        }
        self.buckets
            .check_key(&key)
            .map_err(|until| RetryAfter(until.wait_time_from(now)))
    }

    fn evict_idle(&self, now: Duration) {
        const EVICTION_INTERVAL_MS: u64 = 1_000;
        let mut overflowing = self.buckets.len() >= self.max_subjects;
        if overflowing || self.overflowing.load(Ordering::Relaxed) {
            let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
            let evicted_at = self.evicted_at.load(Ordering::Relaxed);
            let due = now.saturating_sub(evicted_at) >= EVICTION_INTERVAL_MS;
            let mine = due
                && self
                    .evicted_at
                    .compare_exchange(evicted_at, now, Ordering::Relaxed, Ordering::Relaxed)
                    .is_ok();
            if mine {
                self.buckets.retain_recent();
            }
            overflowing = self.buckets.len() >= self.max_subjects;
        }
        self.overflowing.store(overflowing, Ordering::Relaxed);
    }

    /// The keyed hash (SipHash) of the subject. Two subjects collide with a probability of 1 in 2⁶⁴.
    fn key(&self, subject: &LimitSubject<'_>) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        match (self.rule.spec.per, subject.user) {
            (LimitKey::Address, _) => address(subject.address).hash(&mut hasher),
            (LimitKey::User, Some(user)) => user.id.hash(&mut hasher),
            (LimitKey::Principal | LimitKey::User, _) => match subject.peer.principal() {
                Principal::Workload(id) => id.hash(&mut hasher),
                // Anonymous peers are not one principal: the address distinguishes them.
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
            .field("subjects", &self.buckets.len())
            .finish_non_exhaustive()
    }
}

/// An IPv4 address unchanged; the first 64 bits of an IPv6 address, since a client can choose the rest.
fn address(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6((ip.to_bits() >> 64 << 64).into()),
        v4 => v4,
    }
}

fn quota(rule: &RateLimitRule) -> Quota {
    // Resources are validated when they are loaded; a rate of 0 would still allow one request at a time.
    let requests = NonZeroU32::new(rule.rate.requests).unwrap_or(NonZeroU32::MIN);
    let burst = rule.burst.and_then(NonZeroU32::new).unwrap_or(requests);
    let each = rule.rate.per.0 / requests.get();
    Quota::with_period(each.max(Duration::from_nanos(1)))
        .unwrap_or_else(|| Quota::per_second(requests))
        .allow_burst(burst)
}

thread_local! {
    /// The time passed to [`Limiter::check`], since the registry's origin.
    static NOW: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// The clock for governor: returns the time that was set on this thread.
#[derive(Debug, Clone, Copy)]
pub(super) struct ThreadTime;

impl Clock for ThreadTime {
    type Instant = Duration;

    fn now(&self) -> Duration {
        NOW.get()
    }
}
